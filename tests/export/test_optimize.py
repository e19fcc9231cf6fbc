"""Rewrites: each is the same function to float rounding, and does what it is for; where it is not exact, nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from at_hand import ENCODER_WEIGHTS, needs
from caplet.image import load_pixels
from caplet_export.calibrate import Feed
from caplet_export.config import ModelConfig
from caplet_export.convert import convert_encoder
from caplet_export.onnx_graph import Graph, attribute, value_shapes
from caplet_export.optimize import (
    dense_as_convolution,
    fold_batch_norm,
    fold_input_scaling,
    fuse_dense,
    group_pixels,
    merge_sibling_convolutions,
    optimize_encoder,
    optimize_for_bytes,
    optimize_for_floats,
    pool_after_projection,
    pool_as_convolution,
    winograd_before_pooling,
    zero_denormals,
)
from caplet_export.quantize import quantize
from tiny_encoder import SIZE, build_tiny_extractor, build_tiny_model

Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto]


class Builder:
    """A graph with random constants, node by node."""

    def __init__(self, *shape: int | str, kind: int = TensorProto.FLOAT) -> None:
        self._random = np.random.default_rng(7)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._input = helper.make_tensor_value_info("x", kind, shape)

    def constant(self, *shape: int, value: Any = None) -> str:
        name = f"c{len(self._constants)}"
        array = self._random.normal(size=shape) if value is None else np.asarray(value)
        dtype = array.dtype if array.dtype == np.int64 else np.float32
        self._constants.append(numpy_helper.from_array(array.astype(dtype), name))
        return name

    def node(self, kind: str, *inputs: str, others: tuple[str, ...] = (), **attributes: Any) -> str:
        """The name of the node's first output; `others` are the names of more."""
        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name, *others], **attributes))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, **attributes: Any) -> str:
        weights, bias = self.constant(outputs, inputs, kernel, kernel), self.constant(outputs)
        return self.node("Conv", x, weights, bias, kernel_shape=[kernel, kernel], **attributes)

    def model(self, *outputs: str) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self._nodes, "test", [self._input], values, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto, x: NDArray[Any]) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: x})


def check_equal(before: onnx.ModelProto, after: onnx.ModelProto, x: NDArray[Any]) -> None:
    for expected, found in zip(run(before, x), run(after, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Those that are not in groups, as depthwise ones are."""
    return [node for node in Graph(model).of_type("Conv") if attribute(node, "group", 1) == 1]


def products(model: onnx.ModelProto) -> int:
    """Multiplications of a photo's values with weights in `convolutions`."""
    shapes, constants = value_shapes(model), Graph(model).constants
    return sum(constants[node.input[1]].size * int(np.prod(shapes[node.output[0]][2:])) for node in convolutions(model))


def floats(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("attributes", [{}, {"epsilon": 0.01}])
def test_batch_norm_goes_into_the_convolution(attributes: dict[str, Any]) -> None:
    b = Builder("N", 3, 6, 6)
    statistics = [b.constant(value=np.linspace(low, high, 5)) for low, high in ((0.5, 2), (-1, 1), (-2, 3), (0.1, 4))]
    before = b.model(b.node("BatchNormalization", b.conv("x", 3, 5, 3), *statistics, **attributes))
    after = fold_batch_norm(before)
    check_equal(before, after, floats(2, 3, 6, 6))
    assert kinds(after) == {"Conv": 1}


def test_batch_norm_stays_where_something_else_reads_the_convolution() -> None:
    b = Builder("N", 3, 6, 6)
    conv = b.conv("x", 3, 5)
    statistics = [b.constant(value=np.linspace(0.5, 1, 5)) for _ in range(4)]
    before = b.model(b.node("BatchNormalization", conv, *statistics), b.node("Relu", conv))
    assert kinds(fold_batch_norm(before)) == {"Conv": 1, "BatchNormalization": 1, "Relu": 1}


def scaled_pixels(**padding: Any) -> onnx.ModelProto:
    b = Builder("N", 9, 9, 3, kind=TensorProto.UINT8)
    scaled = b.node("Sub", b.node("Div", b.node("Cast", "x", to=1), b.constant(value=127.5)), b.constant(value=1.0))
    nchw = b.node("Transpose", scaled, perm=[0, 3, 1, 2])
    return b.model(b.conv(nchw, 3, 4, 3, strides=[2, 2], **padding))


@pytest.mark.parametrize("padding", [{}, {"pads": [0, 0, 0, 0]}, {"auto_pad": "VALID"}])
def test_scaling_goes_into_a_convolution_without_padding(padding: dict[str, Any]) -> None:
    before = scaled_pixels(**padding)
    after = fold_input_scaling(before)
    check_equal(before, after, np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8))
    assert [node.op_type for node in after.graph.node] == ["Transpose", "Cast", "Conv"]


@pytest.mark.parametrize("padding", [{"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_UPPER"}])
def test_scaling_stays_before_a_convolution_with_padding(padding: dict[str, Any]) -> None:
    before = scaled_pixels(**padding)
    assert kinds(fold_input_scaling(before)) == kinds(before)


def pooled(outputs: int, conv: dict[str, Any] | None = None, **attributes: Any) -> onnx.ModelProto:
    b = Builder("N", 6, 7, 5)
    padding = {} if "auto_pad" in attributes else {"pads": [1, 1, 1, 1]}
    pool = b.node("AveragePool", "x", kernel_shape=[3, 3], **{**padding, **attributes})
    conv = conv or {}
    return b.model(b.node("Relu", b.conv(pool, 6 // conv.get("group", 1), outputs, **conv)))


@pytest.mark.parametrize("attributes", [{}, {"count_include_pad": 1, "pads": [0, 0, 0, 0]}])
def test_projection_comes_before_pooling(attributes: dict[str, Any]) -> None:
    before = pooled(2, **attributes)
    after = pool_after_projection(before)
    check_equal(before, after, floats(2, 6, 7, 5))
    assert [node.op_type for node in after.graph.node] == ["Conv", "AveragePool", "Relu"]


@pytest.mark.parametrize(
    "outputs, attributes",
    [
        (6, {}),
        (2, {"count_include_pad": 1}),
        (2, {"count_include_pad": 1, "auto_pad": "SAME_UPPER"}),
        (2, {"ceil_mode": 1}),
        (2, {"conv": {"group": 2}}),
        (2, {"conv": {"strides": [2, 2]}}),
        (2, {"conv": {"pads": [1, 1, 1, 1]}}),
    ],
)
def test_pooling_stays_where_moving_it_gains_nothing_or_is_not_exact(outputs: int, attributes: dict[str, Any]) -> None:
    after = pool_after_projection(pooled(outputs, **attributes))
    assert [node.op_type for node in after.graph.node] == ["AveragePool", "Conv", "Relu"]


@pytest.mark.parametrize("kernel, pads", [([3, 3], [1, 1, 1, 1]), ([3, 2], [1, 0, 0, 1]), ([2, 2], [0, 0, 0, 0])])
def test_pooling_becomes_a_depthwise_convolution(kernel: list[int], pads: list[int]) -> None:
    b = Builder("N", 4, 7, 5)
    projected = b.conv("x", 4, 4)
    pool = b.node("AveragePool", projected, kernel_shape=kernel, pads=pads)
    before = b.model(b.node("MaxPool", b.node("Relu", pool), kernel_shape=[2, 2]))
    after = pool_as_convolution(before)
    check_equal(before, after, floats(2, 4, 7, 5))
    assert kinds(after) == {"Conv": 2, "Relu": 1, "Mul": 1, "MaxPool": 1}


@pytest.mark.parametrize(
    "attributes",
    [
        {"auto_pad": "SAME_UPPER"},  # how much it pads is nowhere said in numbers
        {"pads": [1, 1, 1, 1], "count_include_pad": 1},
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"pads": [1, 1, 1, 1], "ceil_mode": 1},
    ],
)
def test_pooling_of_another_kind_stays(attributes: dict[str, Any]) -> None:
    b = Builder("N", 4, 7, 5)
    pool = b.node("AveragePool", b.conv("x", 4, 4), kernel_shape=[3, 3], **attributes)
    before = b.model(b.node("MaxPool", b.node("Relu", pool), kernel_shape=[2, 2]))
    assert kinds(pool_as_convolution(before)) == kinds(before)


def test_siblings_become_one_convolution() -> None:
    b = Builder("N", 4, 3, 3)
    trunk = b.node("Relu", "x")
    branches = [b.node("Relu", b.conv(trunk, 4, outputs)) for outputs in (2, 5, 3)]
    wide = b.node("Relu", b.conv(trunk, 4, 2, 3))
    before = b.model(*branches, wide)
    after = merge_sibling_convolutions(before)
    check_equal(before, after, floats(2, 4, 3, 3))
    assert kinds(after) == {"Conv": 2, "Relu": 3, "Split": 1}


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "width, stride, kernel", [(11, 2, 3), (12, 2, 3), (14, 2, 3), (15, 1, 3), (16, 4, 3), (19, 2, 5)]
)
def test_pixels_are_taken_by_fours(width: int, stride: int, kernel: int, relu: bool) -> None:
    b = Builder("N", 9, width, 3, kind=TensorProto.UINT8)
    planes = b.node("Cast", b.node("Transpose", "x", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    found = b.conv(planes, 3, 5, kernel, strides=[2, stride])
    before = b.model(b.conv(b.node("Relu", found) if relu else found, 5, 2))
    after = group_pixels(before)
    pixels = np.random.default_rng(2).integers(0, 256, (2, 9, width, 3), np.uint8)
    check_equal(before, after, pixels)
    assert kinds(after)["Slice"] == kinds(after)["Pad"] == 1
    first = next(node for node in after.graph.node if node.op_type == "Conv")
    weights = {tensor.name: tensor for tensor in after.graph.initializer}[first.input[1]]
    assert weights.dims[:2] == [4 // stride * 5, 12]


@pytest.mark.parametrize(
    "attributes, shape",
    [
        ({"strides": [2, 3]}, (9, 12, 3)),
        ({"strides": [2, 4]}, (9, 14, 3)),  # the last two columns are in no window
        ({"pads": [1, 1, 1, 1]}, (9, 12, 3)),
        ({"auto_pad": "SAME_UPPER"}, (9, 12, 3)),
        ({"dilations": [1, 2]}, (9, 12, 3)),
        ({"strides": [2, 2]}, ("H", "W", 3)),
    ],
)
def test_pixels_stay_alone_where_grouping_is_not_exact(attributes: dict[str, Any], shape: tuple[Any, ...]) -> None:
    b = Builder("N", *shape, kind=TensorProto.UINT8)
    planes = b.node("Cast", b.node("Transpose", "x", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    before = b.model(b.conv(planes, 3, 5, 3, **attributes))
    assert kinds(group_pixels(before)) == kinds(before)


HALVES = {"kernel_shape": [3, 3], "strides": [2, 2]}


def convolved_and_pooled(
    *shape: int | str,
    kernel: int = 3,
    conv: dict[str, Any] | None = None,
    pool: dict[str, Any] | None = None,
    kinds: tuple[str, str] = ("Relu", "MaxPool"),
) -> onnx.ModelProto:
    b = Builder("N", 4, *(shape or (9, 9)))
    conv = conv or {}
    activated = b.node(kinds[0], b.conv("x", 4 // conv.get("group", 1), 6, kernel, **conv))
    return b.model(b.node(kinds[1], activated, **{**HALVES, **(pool or {})}))


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 2, 1, 0], [2, 0, 0, 1]])
@pytest.mark.parametrize("height, width", [(5, 5), (5, 6), (9, 7), (8, 12), (7, 13)])
def test_winograd_makes_the_same_maxima(height: int, width: int, pads: list[int]) -> None:
    before = convolved_and_pooled(height, width, conv={"pads": pads})
    after = winograd_before_pooling(before)
    check_equal(before, after, floats(2, 4, height, width))
    assert [attribute(node, "kernel_shape") for node in convolutions(after)] == [[3, 1]] * 4


def test_winograd_takes_two_thirds_of_the_products() -> None:
    before = convolved_and_pooled(13, 14)
    assert products(winograd_before_pooling(before)) == pytest.approx(2 / 3 * products(before))


def test_winograd_is_as_exact_as_floats_are() -> None:
    """Against the same convolution in doubles, of a photo's worth of channels."""
    b = Builder("N", 64, 11, 11)
    conv = b.conv("x", 64, 8, 3)
    before = b.model(b.node("MaxPool", b.node("Relu", conv), **HALVES))
    x = floats(1, 64, 11, 11)
    weights, bias = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in before.graph.initializer)
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(np.float64), (3, 3), axis=(1, 2))
    convolved = np.maximum(np.einsum("cyxhw,ochw->oyx", windows, weights) + bias[:, None, None], 0)
    expected = np.lib.stride_tricks.sliding_window_view(convolved, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(3, 4))
    np.testing.assert_allclose(run(winograd_before_pooling(before), x)[0][0], expected, atol=3e-6 * expected.max())


@pytest.mark.parametrize(
    "different",
    [
        {"kernel": 5},
        {"conv": {"strides": [1, 2]}},
        {"conv": {"dilations": [2, 1]}},
        {"conv": {"group": 2}},
        {"conv": {"auto_pad": "SAME_UPPER"}},
        {"pool": {"kernel_shape": [3, 2]}},
        {"pool": {"strides": [2, 1]}},
        {"pool": {"pads": [0, 0, 1, 1]}},
        {"pool": {"ceil_mode": 1}},
        {"pool": {"dilations": [1, 2]}},
        {"kinds": ("Sigmoid", "MaxPool")},
        {"kinds": ("Relu", "AveragePool")},
    ],
)
def test_other_convolutions_and_poolings_stay(different: dict[str, Any]) -> None:
    before = convolved_and_pooled(**different)
    assert kinds(winograd_before_pooling(before)) == kinds(before)


def test_convolutions_stay_where_something_else_reads_them_or_the_width_is_open() -> None:
    b = Builder("N", 4, 9, 9)
    relu = b.node("Relu", b.conv("x", 4, 6, 3))
    read_twice = b.model(b.node("MaxPool", relu, **HALVES), b.node("Sigmoid", relu))
    b = Builder("N", 4, 9, 9)
    pool = b.node("MaxPool", b.node("Relu", b.conv("x", 4, 6, 3)), others=("places",), **HALVES)
    with_places = b.model(pool, b.node("Cast", "places", to=TensorProto.FLOAT))
    for before in (read_twice, with_places, convolved_and_pooled(9, "W")):
        assert kinds(winograd_before_pooling(before)) == kinds(before)


def flattened(b: Builder, perm: tuple[int, ...] = (0, 2, 3, 1), sizes: tuple[int, ...] = (-1, 6, 4)) -> str:
    return b.node("Reshape", b.node("Transpose", "x", perm=perm), b.constant(value=np.array(sizes)))


def test_dense_layers_over_channels_become_convolutions() -> None:
    b = Builder("N", 4, 3, 2)
    dense = b.node("Add", b.node("MatMul", flattened(b), b.constant(4, 5)), b.constant(5))
    before = b.model(b.node("Relu", dense), dense)
    after = dense_as_convolution(before)
    check_equal(before, after, floats(2, 4, 3, 2))
    assert [node.op_type for node in after.graph.node] == ["Conv", "Transpose", "Reshape", "Relu"]


def test_dense_layers_stay_where_they_read_something_else_or_something_else_is_read() -> None:
    def model(perm: tuple[int, ...] = (0, 2, 3, 1), sizes: tuple[int, ...] = (-1, 6, 4), bias: int = 5) -> Any:
        b = Builder("N", 4, 3, 2)
        product = b.node("MatMul", flattened(b, perm, sizes), b.constant(sizes[-1], 5))
        return b.model(b.node("Add", product, b.constant(bias)))

    b = Builder("N", 4, 3, 2)
    grid = flattened(b)
    read_twice = b.model(b.node("Add", b.node("MatMul", grid, b.constant(4, 5)), b.constant(5)), b.node("Relu", grid))
    b = Builder("N", 4, 3, 2)
    no_bias = b.model(b.node("Relu", b.node("MatMul", flattened(b), b.constant(4, 5))))
    b = Builder("N", 6, 4)
    no_grid = b.model(b.node("Add", b.node("MatMul", "x", b.constant(4, 5)), b.constant(5)))
    rows, pairs = model(perm=(0, 3, 2, 1), sizes=(-1, 6, 4)), model(sizes=(-1, 3, 8))
    for before in (read_twice, no_bias, no_grid, rows, pairs, model(bias=1)):
        assert kinds(dense_as_convolution(before)) == kinds(before)


def test_dense_layers_take_their_bias_in() -> None:
    b = Builder("N", 4)
    before = b.model(b.node("Add", b.constant(6), b.node("MatMul", "x", b.constant(4, 6))))
    after = fuse_dense(before)
    check_equal(before, after, floats(3, 4))
    assert kinds(after) == {"Gemm": 1}


def test_dense_layers_of_more_than_two_dimensions_are_no_gemm() -> None:
    b = Builder("N", 5, 4)
    before = b.model(b.node("Add", b.node("MatMul", "x", b.constant(4, 6)), b.constant(6)))
    assert kinds(fuse_dense(before)) == {"MatMul": 1, "Add": 1}


def test_products_without_a_bias_are_no_dense_layers() -> None:
    b = Builder("N", 4)
    scaled = b.model(b.node("Mul", b.node("MatMul", "x", b.constant(4, 6)), b.constant(6)))
    b = Builder("N", 4)
    added = b.model(b.node("Add", b.node("MatMul", "x", b.constant(4, 4)), "x"))
    b = Builder("N", 4)
    several = b.model(b.node("Add", b.node("MatMul", "x", b.constant(2, 4, 4)), b.constant(4)))
    for before in (scaled, added, several):
        assert kinds(fuse_dense(before)) == kinds(before)


def test_denormal_weights_are_zero_and_normal_ones_untouched() -> None:
    tiny = float(np.finfo(np.float32).tiny)
    b = Builder("N", 4)
    after = zero_denormals(b.model(b.node("Mul", "x", b.constant(value=[tiny / 2, -tiny / 8, tiny, -0.25]))))
    np.testing.assert_array_equal(
        numpy_helper.to_array(after.graph.initializer[0]), np.array([0, 0, tiny, -0.25], np.float32)
    )


@pytest.fixture(scope="module")
def encoder() -> onnx.ModelProto:
    return convert_encoder(build_tiny_extractor(), build_tiny_model())


@pytest.mark.parametrize("rewrite", [optimize_encoder, optimize_for_bytes, optimize_for_floats])
def test_all_rewrites_together_change_nothing(encoder: onnx.ModelProto, rewrite: Rewrite) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    check_equal(encoder, rewrite(encoder), pixels)


def test_operators_that_are_left(encoder: onnx.ModelProto) -> None:
    after = optimize_encoder(encoder)
    counts = kinds(after)
    # Nothing in front of the first convolution but layout and type; one transpose in and one out.
    assert [node.op_type for node in after.graph.node][:3] == ["Transpose", "Cast", "Conv"]
    assert counts["Transpose"] == 2
    assert not {"BatchNormalization", "Sub", "Div", "Shape", "Pad"} & set(counts)
    assert counts["Conv"] == 5 and counts["AveragePool"] == counts["MaxPool"] == 1
    for_bytes = kinds(optimize_for_bytes(after))
    assert for_bytes["Conv"] == 5 and for_bytes["Split"] == 1 and for_bytes["AveragePool"] == 0


def test_a_rewrite_that_makes_a_circle_fails_instead_of_going_round_it() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xb"]
    graph = Graph(helper.make_model(helper.make_graph(nodes, "circle", values[:1], values[1:])))
    with pytest.raises(ValueError, match="depends on its own output"):
        graph.finish()


# A file of its own would have the fewest tests, be the last that begins, and keep one worker of two waiting.
@needs(ENCODER_WEIGHTS)
def test_rewrites_of_inception_change_nothing_and_quantisation_little(photos: Path, tmp_path: Path) -> None:
    """The released feature extractor itself, where its weights are at hand: every operator is fused."""
    from caplet_export.inception import build_extractor

    model = build_tiny_model(ModelConfig(vocabulary_size=30), spread=0.02)
    plain = convert_encoder(build_extractor(str(ENCODER_WEIGHTS)), model)
    pixels = np.stack([load_pixels(photos / f"{name}.jpg") for name in ("cat", "coffee", "rocket")])

    def said(model: onnx.ModelProto) -> list[NDArray[np.float32]]:  # as onnxruntime fuses it by default
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(["features", "keys", "state"], {"pixels": pixels})

    optimized = optimize_encoder(plain)
    for_bytes, for_floats = optimize_for_bytes(optimized), optimize_for_floats(optimized)
    expected = said(plain)
    for rewritten in (optimized, for_bytes, for_floats):
        for before, after in zip(expected, said(rewritten), strict=True):
            np.testing.assert_allclose(after, before, atol=1e-5 * float(np.abs(before).max()))

    counts = kinds(optimized)
    assert counts["Conv"] == 94 and counts["AveragePool"] == 9 and counts["Transpose"] == 2
    counts = kinds(for_floats)
    assert counts["MaxPool"] == 4 + 2 and counts["MatMul"] == 1  # two poolings of halves each; the keys
    assert 0.93 < products(winograd_before_pooling(optimized)) / products(optimized) < 0.94
    counts = kinds(for_bytes)
    assert counts["Conv"] == 75 + 9 and counts["AveragePool"] == 0 and counts["Split"] == 10
    assert counts["Pad"] == counts["Slice"] == 1  # pixels by fours

    def calibration() -> Iterator[Feed]:
        yield {"pixels": pixels}

    small = quantize(for_bytes, calibration, method="minmax")
    assert len(small.SerializeToString()) < 25e6
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
    counts = kinds(onnx.load(tmp_path / "fused.onnx"))
    assert counts["QLinearConv"] == 84 and counts["QLinearConcat"] == 11 and counts["QLinearMul"] == 9
    assert counts["NhwcMaxPool"] == 4 and counts["MatMulIntegerToFloat"] == 2 and counts["QGemm"] == 1
    assert not {"Conv", "MatMul", "Gemm", "QLinearAveragePool", "Transpose", "Relu"} & set(counts)
    assert counts["QuantizeLinear"] + counts["DequantizeLinear"] <= 3
    features, rough = expected[0], said(small)[0]
    assert 10 * np.log10((features**2).sum() / ((features - rough) ** 2).sum()) > 12
