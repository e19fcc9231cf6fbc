"""Quantisation: ranges from a stream of photos, and graphs that onnxruntime fuses whole and that still say the same."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from caplet.bundle import load_bundle
from caplet_export.bias_correction import correct_biases
from caplet_export.calibrate import Feed, Observer, calibrate, greedy_feeds
from caplet_export.cli import main
from caplet_export.convert import convert_decoder, convert_encoder, take_top_k
from caplet_export.flickr8k import read_dataset
from caplet_export.onnx_graph import Graph, Session
from caplet_export.optimize import optimize_decoder, optimize_encoder, optimize_for_bytes
from caplet_export.photos import photo_batches
from caplet_export.quantize import activation_scale, insert_qdq, quantize, quantize_weights, saturates, scale_groups
from caplet_export.ranges import BINS, METHODS, Histogram, mse_range, percentile_range
from caplet_export.text import SPECIALS, START, Vocabulary
from tiny_encoder import CONFIG, SIZE, build_tiny_extractor, build_tiny_model
from tiny_flickr8k import write_split, write_tiny_flickr8k

Graphs = tuple[onnx.ModelProto, onnx.ModelProto]


def photos(seed: int = 0, batches: int = 4) -> Iterator[Feed]:
    """Smooth random photos: noise would be all that a 3×3 kernel sees."""
    generator = np.random.default_rng(seed)
    for _ in range(batches):
        coarse = generator.integers(0, 256, (2, 5, 5, 3), np.uint8)
        yield {"pixels": coarse.repeat(7, axis=1).repeat(7, axis=2)}


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    model = build_tiny_model()
    encoder = optimize_encoder(convert_encoder(build_tiny_extractor(), model))
    return encoder, take_top_k(optimize_decoder(convert_decoder(model)))


@pytest.fixture(scope="module")
def small(graphs: Graphs) -> Graphs:
    encoder, decoder = graphs
    return (
        quantize(optimize_for_bytes(encoder), photos),
        quantize(decoder, lambda: greedy_feeds(encoder, decoder, photos(), max_length=6)),
    )


def run(model: onnx.ModelProto, feed: Feed) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def fused(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operator types of the graph that onnxruntime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "fused.onnx").graph.node)


def signal_to_noise(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """In decibels."""
    return float(10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


def test_every_convolution_and_dense_layer_of_the_encoder_is_fused(small: Graphs, tmp_path: Path) -> None:
    counts = fused(small[0], tmp_path)
    assert counts["QLinearConv"] == 5 and counts["QLinearMul"] == 1
    assert counts["MatMulIntegerToFloat"] == 2 and counts["QGemm"] == 1
    assert not {"Conv", "MatMul", "Gemm", "AveragePool", "QLinearAveragePool", "Transpose", "Relu"} & set(counts)
    # Into bytes: what the two later dense layers read. Back: nothing, as the mean is that of the features in floats.
    assert counts["QuantizeLinear"] <= 2 and counts["DequantizeLinear"] == 0


def test_every_dense_layer_of_the_decoder_is_fused(small: Graphs, tmp_path: Path) -> None:
    counts = fused(small[1], tmp_path)
    assert counts["QGemm"] + counts["MatMulIntegerToFloat"] == 4  # none with the word: that one is looked up
    assert counts["MatMul"] <= 2  # the attention's own: scores, and the weighted sum of the features
    assert counts["Gemm"] == counts["Transpose"] == 0
    assert counts["QuantizeLinear"] == 4 and counts["DequantizeLinear"] == 1  # back: what the word is looked up to be
    assert sum(counts.values()) <= 36


def test_eight_bits_say_nearly_the_same(graphs: Graphs, small: Graphs) -> None:
    feed = next(photos(seed=5))
    exact, rough = run(graphs[0], feed), run(small[0], feed)
    for name in ("features", "keys", "state"):
        assert signal_to_noise(exact[name], rough[name]) > 25, name
    step = {"token": np.array([1, 5]), **{name: exact[name] for name in ("state", "features", "keys")}}
    exact, rough = run(graphs[1], step), run(small[1], step)
    np.testing.assert_allclose(rough["attention"].sum(axis=1), 1, rtol=1e-5)
    assert signal_to_noise(exact["next_state"], rough["next_state"]) > 25
    np.testing.assert_array_equal(rough["tokens"][:, 0], exact["tokens"][:, 0])
    assert np.abs(rough["log_probs"][:, :3] - exact["log_probs"][:, :3]).max() < 0.5


def means_after_relus(model: onnx.ModelProto, values: list[str]) -> list[NDArray[np.float64]]:
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    probed.graph.output.extend(helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in values)
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(None, dict(feed)) for feed in photos()]
    return [np.concatenate(parts).mean(axis=(0, 2, 3), dtype=np.float64) for parts in zip(*runs, strict=True)]


def test_corrected_biases_give_channels_their_means_back(graphs: Graphs, small: Graphs) -> None:
    encoder = optimize_for_bytes(graphs[0])
    corrected = correct_biases(encoder, small[0], photos())
    values = [node.output[0] for node in small[0].graph.node if node.op_type == "Conv" and len(node.input) > 2]
    wanted = means_after_relus(encoder, values)
    before, after = (
        means_after_relus(model, [f"{value}/dequantized" for value in values]) for model in (small[0], corrected)
    )
    errors = [
        sum(np.abs(one - other).sum() for one, other in zip(found, wanted, strict=True)) for found in (before, after)
    ]
    assert errors[1] < errors[0] / 2
    # Of photos it has not seen the grid is at least as good, and nothing but biases has changed.
    feed = next(photos(seed=7))
    expected = run(encoder, feed)["features"]
    assert signal_to_noise(expected, run(corrected, feed)["features"]) > (
        signal_to_noise(expected, run(small[0], feed)["features"]) - 0.5
    )
    constants = [
        {one.name: numpy_helper.to_array(one) for one in model.graph.initializer} for model in (small[0], corrected)
    ]
    changed = {name for name, array in constants[0].items() if not np.array_equal(array, constants[1][name])}
    assert constants[0].keys() == constants[1].keys()
    assert changed and all("/bias/" in name for name in changed)


def test_biases_of_deep_layers_are_corrected_without_the_others_being_run_again(
    graphs: Graphs, small: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And come out as if each layer were run from the pixels on."""
    run: list[int] = []

    class Watched(Session):
        def __init__(self, model: onnx.ModelProto) -> None:
            super().__init__(model)
            run.append(sum(node.op_type == "Conv" for node in model.graph.node))

    monkeypatch.setattr("caplet_export.calibrate.Session", Watched)
    encoder = optimize_for_bytes(graphs[0])
    corrected = correct_biases(encoder, small[0], photos())
    assert run == [4, 1, 1, 2, 2, 1]  # all in floating point; then each layer to measure it, and to go on from it
    monkeypatch.setattr("caplet_export.bias_correction._read_below", lambda *_: [])
    assert correct_biases(encoder, small[0], photos()) == corrected


def test_only_what_leads_to_the_observed_values_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime would run the rest as well, and bias correction take twice as long."""
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Mul", ["a", "factor"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    factor = numpy_helper.from_array(np.ones(2, np.float32), "factor")
    given: list[onnx.ModelProto] = []
    monkeypatch.setattr("caplet_export.calibrate.Session", given.append)
    Observer(helper.make_model(helper.make_graph(nodes, "graph", ends[:1], ends[1:], [factor])), ["a"], ["ReduceMax"])
    (observed,) = given
    assert [node.op_type for node in observed.graph.node] == ["Relu", "ReduceMax"]
    assert not observed.graph.initializer


def test_a_bias_moves_by_what_its_mean_lacks_at_the_places_that_count() -> None:
    """All without a ReLU. With one, those that it lets through: half of them twice, few, and so few that it stays."""
    biases, off = np.array([-0.5, -0.5, -0.5, -0.985, -0.994]), np.array([-0.02, -0.02, 0.02, -0.02, -0.02])
    node, info = helper.make_node, helper.make_tensor_value_info
    nodes = [node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT)]
    nodes += [
        node("Conv", ["x", f"{name}/w", f"{name}/b"], [out])
        for name, out in (("linear", "linear"), ("bent", "bent/all"))
    ]
    nodes += [node("Relu", ["bent/all"], ["bent"])]
    nodes += [node("Sigmoid", [name], [f"{name}/read"]) for name in ("linear", "bent")]
    constants = {"linear/b": biases[:1], "bent/b": biases[1:], "linear/w": np.ones((1, 1, 1, 1)) / 255}
    constants["bent/w"] = np.ones((4, 1, 1, 1)) / 255
    graph = helper.make_graph(
        nodes,
        "biases",
        [info("pixels", TensorProto.UINT8, [1, 1, 8, 16])],
        [info(f"{name}/read", TensorProto.FLOAT, [1, size, 8, 16]) for name, size in (("linear", 1), ("bent", 4))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = [{"pixels": half.reshape(1, 1, 8, 16)} for half in np.arange(256, dtype=np.uint8).reshape(2, 128)]
    shifted = Graph(insert_qdq(model, scale_groups(model), {"linear": (-0.55, 0.55), "bent": (0.0, 0.55)}))
    stored = {name: name.removesuffix("quantized") + "scale" for name in shifted.constants if "/bias/quantized" in name}
    for (name, scale), moved in zip(sorted(stored.items(), reverse=True), (off[:1], off[1:]), strict=True):
        steps = np.rint(moved / shifted.constants[scale])
        shifted.constants[name] = (shifted.constants[name] + steps).astype(np.int32)
    corrected = Graph(correct_biases(model, shifted.finish(), feeds))
    found = np.concatenate(
        [
            (corrected.constants[name] - shifted.constants[name]) * shifted.constants[scale]
            for name, scale in sorted(stored.items(), reverse=True)
        ]
    )
    before, after = ((np.arange(256) / 255)[:, None] + shift for shift in (biases, biases + off))
    shares = np.maximum((before > 0).mean(axis=0), (after > 0).mean(axis=0)).clip(min=0.05)
    lacking = (before.clip(min=0) - after.clip(min=0)).mean(axis=0) / shares
    np.testing.assert_allclose(found, [0.02, *lacking[1:4], 0], atol=3e-4)
    assert found[4] == 0


def test_files_shrink(graphs: Graphs, small: Graphs) -> None:
    def largest(model: onnx.ModelProto) -> set[np.dtype[np.generic]]:
        return {numpy_helper.to_array(tensor).dtype for tensor in model.graph.initializer if np.prod(tensor.dims) > 64}

    assert largest(graphs[0]) == {np.dtype(np.float32)}
    # All that is left in float is a scale for each channel and the attention's score vector.
    assert np.dtype(np.int8) in largest(small[0]) and np.dtype(np.float32) not in largest(small[0])


def test_a_caption_does_not_depend_on_its_batch(small: Graphs) -> None:
    pixels = np.concatenate([feed["pixels"] for feed in photos(seed=9)])
    together = run(small[0], {"pixels": pixels})
    for row in range(len(pixels)):
        alone = run(small[0], {"pixels": pixels[row : row + 1]})
        np.testing.assert_allclose(alone["features"][0], together["features"][row], atol=1e-5)
    step = {"token": np.full(len(pixels), 1), **together}
    together = run(small[1], step)
    alone = run(small[1], {name: array[:1] for name, array in step.items()})
    np.testing.assert_allclose(alone["log_probs"][0], together["log_probs"][0], atol=1e-4)


def test_values_that_are_only_moved_share_a_scale(graphs: Graphs) -> None:
    groups = scale_groups(graphs[0])
    concat = next(node for node in graphs[0].graph.node if node.op_type == "Concat")
    pool = next(node for node in graphs[0].graph.node if node.op_type == "MaxPool")
    assert {groups[value] for value in concat.input} == {groups[concat.output[0]]}
    assert groups[pool.input[0]] == groups[pool.output[0]] != groups[concat.output[0]]


def test_dense_layers_may_read_pieces_of_an_input_and_pieces_put_together(tmp_path: Path) -> None:
    """As the members of an ensemble do: each its own part of the state, and the words from all of them."""
    random = np.random.default_rng(4)
    arrays = {name: random.normal(size=(8, 6)) for name in ("a", "b")} | {"c": random.normal(size=(12, 5))}
    arrays |= {f"{name}/bias": random.normal(size=array.shape[1]) for name, array in arrays.items()}
    node = onnx.helper.make_node
    nodes = [node("Split", ["x"], ["x/a", "x/b"], axis=1)]
    nodes += [node("Gemm", [f"x/{part}", part, f"{part}/bias"], [f"y/{part}"]) for part in "ab"]
    nodes += [node("Tanh", [f"y/{part}"], [f"t/{part}"]) for part in "ab"]
    nodes += [node("Concat", ["t/a", "t/b"], ["t"], axis=1), node("Gemm", ["t", "c", "c/bias"], ["z"])]
    x, z = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size])
        for name, size in (("x", 16), ("z", 5))
    )
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "pieces", [x], [z], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    feed = {"x": random.normal(size=(64, 16)).astype(np.float32)}
    found = quantize(model, lambda: [feed])
    assert signal_to_noise(run(model, feed)["z"], run(found, feed)["z"]) > 25
    assert fused(found, tmp_path)["QGemm"] == 3


def test_a_relu_stays_where_what_it_reads_is_read_by_others() -> None:
    generator = np.random.default_rng(0)
    kernels = {name: generator.normal(size=(4, 3, 3, 3)).astype(np.float32) for name in ("w", "v")}
    kernels["v"] = kernels["v"][:, [0, 1, 2, 0]]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["before"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["before"], ["after"]),
        helper.make_node("Conv", ["before", "v"], ["negative"], kernel_shape=[3, 3]),
        helper.make_node("Conv", ["after", "v"], ["positive"], kernel_shape=[3, 3]),
        helper.make_node("Sub", ["positive", "negative"], ["y"]),
    ]
    sizes = {"x": (3, 9, 9), "y": (4, 5, 5)}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *size]) for name, size in sizes.items()]
    weights = [numpy_helper.from_array(kernel, name) for name, kernel in kernels.items()]
    graph = helper.make_graph(nodes, "both", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {"x": generator.normal(size=(2, 3, 9, 9)).astype(np.float32)}
    assert signal_to_noise(run(model, feed)["y"], run(quantize(model, lambda: [feed]), feed)["y"]) > 25


@pytest.mark.parametrize("last", [False, True], ids=["others first", "others last"])
def test_what_a_dense_layer_reads_is_rounded_for_it_alone(last: bool) -> None:
    """A state is carried on, and the features of an ensemble are put together, in floats as they were made.

    So is a piece of what another dense layer reads whole.
    """
    random = np.random.default_rng(6)
    shapes = {"weights": (8, 6), "bias": (6,), "weights of the piece": (5, 6)}
    split = helper.make_node("Split", ["x", "sizes"], ["piece", "rest"], axis=1)
    others = [
        helper.make_node("Concat", ["x", "x"], ["joined"], axis=1),
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Mul", ["piece", "piece"], ["square of the piece"]),
    ]
    dense = [
        helper.make_node("Gemm", ["x", "weights", "bias"], ["y"]),
        helper.make_node("Gemm", ["piece", "weights of the piece", "bias"], ["z"]),
    ]
    value = helper.make_tensor_value_info
    x, *outputs = (
        value(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("x", 8), ("y", 6), ("z", 6), ("joined", 16), ("square", 8), ("square of the piece", 5))
    )
    initializers = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    initializers.append(numpy_helper.from_array(np.array([5, 3]), "sizes"))
    nodes = [split, *dense, *others] if last else [split, *others, *dense]
    graph = helper.make_graph(nodes, "shared", [x], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {"x": random.normal(size=(64, 8)).astype(np.float32)}
    found = run(quantize(model, lambda: [feed]), feed)
    np.testing.assert_array_equal(found["joined"], np.concatenate([feed["x"]] * 2, axis=1))
    np.testing.assert_array_equal(found["square"], feed["x"] ** 2)
    np.testing.assert_array_equal(found["square of the piece"], feed["x"][:, :5] ** 2)
    expected = run(model, feed)
    assert all(25 < signal_to_noise(expected[output], found[output]) < 60 for output in "yz")


@pytest.mark.parametrize("method", METHODS)
def test_ranges_hold_zero_and_nearly_all_values(graphs: Graphs, method: str) -> None:
    value = next(node.input[0] for node in graphs[0].graph.node if node.op_type == "AveragePool")
    low, high = calibrate(graphs[0], {value: "group"}, photos, method)["group"]
    observed = onnx.ModelProto()
    observed.CopyFrom(graphs[0])
    observed.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    values = np.concatenate([run(observed, feed)[value].ravel() for feed in photos()])
    assert low <= 0 <= high
    assert values.min() - 1e-5 <= low and high <= values.max() + 1e-5
    if method == "minmax":
        assert (low, high) == pytest.approx((min(values.min(), 0), max(values.max(), 0)))
    assert np.mean((values >= low) & (values <= high)) > 0.95


def test_outliers_are_clipped_by_percentile_and_mse_but_not_the_bulk() -> None:
    histogram = Histogram(0.0, 100.0, np.zeros(BINS, np.int64))
    histogram.add(np.abs(np.random.default_rng(0).normal(size=10**6)).astype(np.float32) * 10)
    histogram.add(np.array([100.0], np.float32))
    assert histogram.counts.sum() == 10**6 + 1
    for choose in (percentile_range, mse_range):
        low, high = choose(histogram)
        assert low == 0 and 35 < high < 60


@pytest.mark.parametrize("outliers, kept", [(5, False), (15, True)])
def test_percentiles_leave_out_a_hundred_thousandth_at_either_end(outliers: int, kept: bool) -> None:
    histogram = Histogram(-1.0, 1.0, np.zeros(BINS, np.int64))
    histogram.counts[[0, BINS // 2, -1]] = outliers, 10**6, outliers
    low, high = percentile_range(histogram)
    assert (low < -0.99, high > 0.99) == (kept, kept)
    assert not kept or low == -high
    for ends in ((-1.0, 0.0), (0.0, 1.0)):  # zero is one of them exactly
        assert 0.0 in percentile_range(Histogram(*ends, np.full(BINS, 100)))


def test_what_lies_beyond_the_ends_counts_at_the_ends() -> None:
    histogram = Histogram(0.0, 100.0, np.zeros(BINS, np.int64))
    histogram.add(np.array([-1.0, 0.0, 50.0, 100.0, 200.0], np.float32))
    assert histogram.counts[[0, BINS // 2, -1]].tolist() == [2, 1, 2]


def test_what_is_spread_evenly_is_not_clipped() -> None:
    assert mse_range(Histogram(-1.0, 3.0, np.full(BINS, 100))) == (-1.0, 3.0)


@pytest.mark.parametrize(("end", "high"), [(0.4, 0.4), (0.3, 0.3), (0.2, 0.3)])
def test_a_lone_outlier_is_clipped_to_where_the_rest_ends_but_not_to_less_than_three_tenths(
    end: float, high: float
) -> None:
    counts = np.where(np.arange(BINS) < end * BINS, 10**6, 0)
    counts[-1] = 1
    assert mse_range(Histogram(0.0, 1.0, counts)) == (0.0, pytest.approx(high, abs=0.001))


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("sign", ["any", "positive", "negative", "little negative"])
def test_mean_squared_error_is_as_small_as_brute_force_finds(sign: str, zeros: float) -> None:
    random = np.random.default_rng(2)
    values = random.laplace(size=100_000).astype(np.float32) * (random.random(100_000) >= zeros)
    positive = np.abs(values)
    values = {"any": values, "positive": positive, "negative": -positive, "little negative": values.clip(min=-0.5)}[
        sign
    ]
    histogram = Histogram(float(values.min()), float(values.max()), np.zeros(BINS, np.int64))
    histogram.add(values)

    def error(limits: tuple[float, float]) -> float:
        scale, zero = activation_scale(limits)
        rounded = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
        return float(np.mean((values - rounded) ** 2))

    brute = min(error((factor * histogram.low, factor * histogram.high)) for factor in np.linspace(0.2, 1, 81))
    assert error(mse_range(histogram)) <= 1.02 * brute
    assert error(mse_range(histogram)) < error((histogram.low, histogram.high))


SPREAD = np.array([1, 10, 0.1, 0], np.float32)[:, None, None, None]


def neighbours(quantized: NDArray[np.int8]) -> NDArray[np.int32]:
    """Of convolution weights [O,I,H,W], those that `vpmaddubsw` brings together, [O, pairs, 2]."""
    rows = quantized.transpose(0, 2, 3, 1).reshape(len(quantized), -1).astype(np.int32)
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)


def saturating_sums(activations: NDArray[np.uint8], quantized: NDArray[np.int8]) -> NDArray[np.int64]:
    """Dot products [N,O] of activations [N,K] and weights [O,K] with the sum of each pair held in 16 bits."""
    products = activations[:, None].astype(np.int64) * quantized[None]
    pairs = products.reshape(*products.shape[:2], -1, 2).sum(axis=3)
    return pairs.clip(-(2**15), 2**15 - 1).sum(axis=2)


def test_weights_are_within_half_a_step_of_each_channel_but_where_a_pair_is_clipped() -> None:
    weights = np.random.default_rng(3).normal(size=(4, 5, 3, 3)).astype(np.float32) * SPREAD
    quantized, scale = quantize_weights(weights, axis=0)
    assert quantized.dtype == np.int8 and quantized.shape == weights.shape and np.abs(quantized.astype(int)).max() > 64
    error = np.abs(quantized * scale[:, None, None, None] - weights) / np.maximum(scale, 1e-9)[:, None, None, None]
    whole = np.abs(neighbours(quantized)).sum(axis=2) == 128
    assert (neighbours((error > 0.5001).astype(np.int8)).any(axis=2) <= whole).all()
    assert (error <= 0.5001).mean() > 0.95


def test_the_scale_has_the_smallest_error_that_brute_force_finds() -> None:
    weights = np.random.default_rng(4).normal(size=(16, 1, 1, 2)).astype(np.float32)
    weights[:8] = np.abs(weights[:8])  # of one sign, all of them
    quantized, scale = quantize_weights(weights, axis=0)
    error = np.square(quantized * scale[:, None, None, None] - weights).sum(axis=(1, 2, 3))
    whole = np.arange(-127, 128)
    for channel, found in zip(weights.reshape(16, 2), error, strict=True):
        finest = np.abs(channel).max() / 127
        rest = [
            np.square(channel - np.stack(np.meshgrid(whole, whole), -1)[allowed()] * step).sum(axis=1).min()
            for step in finest * np.linspace(1, 127 / 64, 33)
        ]
        assert found <= min(rest) * 1.001 + 1e-12


def test_factors_that_are_simple_fractions_are_exact() -> None:
    """As those of a mean at the edges and in the corners, where fewer values go into it."""
    factors = np.array([1, 3 / 2, 9 / 4], np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy")
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Mul", ["r", "f"], ["y"])]
    graph = helper.make_graph(nodes, "mean", [x], [y], [numpy_helper.from_array(factors, "f")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    small = Graph(quantize(model, lambda: [{"x": np.ones((1, 3), np.float32)}]))
    found = small.constants["y/factors/quantized"] * small.constants["y/factors/scale"]
    np.testing.assert_allclose(found, factors, rtol=1e-6)
    assert set(scale_groups(model)) == {"r", "y"}
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(-factors, "f"))
    assert set(scale_groups(model)) == {"r"}  # factors are unsigned bytes


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_an_average_stays_one(size: int) -> None:
    """An average pooling as a convolution: weights that are all the same, and to sum to 1."""
    weights = np.full((4, 1, size, size), 1 / size**2, np.float32)
    quantized, scale = quantize_weights(weights, axis=0)
    np.testing.assert_allclose(quantized.sum(axis=(1, 2, 3)) * scale, 1, rtol=1e-6)


def allowed() -> NDArray[np.bool_]:
    """Which pairs of -127 to 127 do not saturate, [255,255]."""
    first, second = np.meshgrid(np.arange(-127, 128), np.arange(-127, 128))
    return np.abs(255 * (first + second)) <= 2**15 - 1


@pytest.mark.parametrize(("shape", "axis"), [((6, 3, 3, 3), 0), ((6, 8, 1, 1), 0), ((16, 6), 1)])
def test_no_pair_of_neighbours_saturates_whatever_they_multiply(shape: tuple[int, ...], axis: int) -> None:
    weights = np.random.default_rng(5).normal(loc=0.7, size=shape).astype(np.float32)
    quantized, _ = quantize_weights(weights, axis)
    rows = quantized.transpose(0, 2, 3, 1).reshape(6, -1) if axis == 0 else quantized.T
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    activations = np.random.default_rng(6).choice(np.array([0, 255], np.uint8), (50, rows.shape[1]))
    activations[0] = 255
    exact = activations.astype(np.int64) @ rows.astype(np.int64).T
    np.testing.assert_array_equal(saturating_sums(activations, rows), exact)
    # Such weights as these would, without it.
    plain = np.rint(rows * (127 / np.abs(rows.astype(int)).max(axis=1, keepdims=True))).astype(np.int8)
    assert (saturating_sums(activations, plain) != activations.astype(np.int64) @ plain.astype(np.int64).T).any()


def test_graphs_that_may_saturate_are_told_from_those_that_do_not(graphs: Graphs, small: Graphs) -> None:
    assert not any(saturates(model) for model in (*graphs, *small))
    for model in small:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        tensors = [tensor for tensor in changed.graph.initializer if tensor.name.endswith("/weights/quantized")]
        for tensor in tensors:
            weights = numpy_helper.to_array(tensor).copy()
            assert len(weights.shape) in (2, 4)
            weights[:] = 65
            before = tensor.SerializeToString()
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
            assert saturates(changed), tensor.name
            tensor.ParseFromString(before)
        assert not saturates(changed)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("heavy", ["in a channel", "across channels"])
def test_a_gemm_is_read_by_its_output_channels(transposed: int, heavy: str) -> None:
    """Two large neighbours saturate where they are weights of one channel, and not where they are of two."""
    weights = np.zeros((6, 8), np.int8)  # [output channels, input channels]
    weights[(0, slice(2)) if heavy == "in a channel" else (slice(2), 0)] = 127
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 8), ("y", 6)))
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["weights"]),
        helper.make_node("Gemm", ["x", "weights"], ["y"], transB=transposed),
    ]
    stored = np.ascontiguousarray(weights if transposed else weights.T)
    constants = [numpy_helper.from_array(stored, "w"), numpy_helper.from_array(np.float32(0.1), "scale")]
    graph = helper.make_graph(nodes, "gemm", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert saturates(model) == (heavy == "in a channel")


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_gets_a_scale_for_each_output_channel(transposed: int) -> None:
    random = np.random.default_rng(8)
    matrix = random.normal(size=(16, 6)) * 10.0 ** np.arange(6)  # [input channels, output channels]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 16), ("y", 6)))
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)
    stored = np.ascontiguousarray(matrix.T if transposed else matrix).astype(np.float32)
    constants = [numpy_helper.from_array(stored, "w"), numpy_helper.from_array(np.ones(6, np.float32), "b")]
    graph = helper.make_graph([node], "gemm", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {"x": random.normal(size=(64, 16)).astype(np.float32)}
    exact, rough = (run(made, feed)["y"] for made in (model, quantize(model, lambda: [feed])))
    for channel in range(6):
        assert signal_to_noise(exact[:, channel], rough[:, channel]) > 25


def test_a_channel_without_weights_keeps_its_bias() -> None:
    """Whose scale goes by the weights: 0.5 would be more of its steps than 32 bits hold."""
    info, constant = helper.make_tensor_value_info, numpy_helper.from_array
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w", "b"], ["y"]),
        helper.make_node("Sigmoid", ["y"], ["z"]),
    ]
    weights = np.array([0.01, 0, -0.01], np.float32).reshape(3, 1, 1, 1)
    constants = [constant(weights, "w"), constant(np.array([0.5, 0.5, 0.5], np.float32), "b")]
    pixels, z = info("pixels", TensorProto.UINT8, ["N", 1, 4, 4]), info("z", TensorProto.FLOAT, ["N", 3, 4, 4])
    graph = helper.make_graph(nodes, "dead", [pixels], [z], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {"pixels": np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4)}
    small = quantize(model, lambda: [feed])
    for found in (small, correct_biases(model, small, [feed])):
        np.testing.assert_allclose(run(found, feed)["z"], run(model, feed)["z"], atol=0.005)


def test_a_table_of_words_gets_a_scale_for_each_column() -> None:
    table = (np.random.default_rng(9).normal(size=(20, 6)) * 10.0 ** np.arange(6)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    graph = helper.make_graph([node], "lookup", [x], [y], [numpy_helper.from_array(table, "table")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    small = quantize(model, list)
    assert np.dtype(np.int8) in {values.dtype for values in Graph(small).constants.values()}
    found = run(small, {"x": np.arange(20)})["y"]
    assert (np.abs(found - table) <= 0.51 * np.abs(table).max(axis=0) / 127).all()


def test_every_processor_computes_the_same(small: Graphs) -> None:
    """With onnxruntime's exact kernels and without. It tells where instructions are those of x86 without VNNI."""
    feed = next(photos(seed=8))
    for model, inputs in zip(small, (feed, {"token": np.array([1, 5]), **run(small[0], feed)}), strict=True):
        wanted = {value.name for value in model.graph.input}
        exact = onnxruntime.SessionOptions()
        exact.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(model.SerializeToString(), exact, providers=["CPUExecutionProvider"])
        expected = session.run(None, {name: array for name, array in inputs.items() if name in wanted})
        found = run(model, {name: array for name, array in inputs.items() if name in wanted})
        for one, other in zip(expected, found.values(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (0.0, 7.0), (-2.0, 0.0)])
def test_the_range_is_covered_to_half_a_step(low: float, high: float) -> None:
    scale, zero = activation_scale((low, high))
    assert scale == pytest.approx((high - low) / 255)
    assert [-zero * scale, (255 - zero) * scale] == pytest.approx([low, high], abs=0.51 * scale)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_always_zero_has_a_scale(method: str) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "zero", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ranges = calibrate(model, {"y": "group"}, lambda: [{"x": np.array([-1, -2], np.float32)}], method)
    assert ranges == {"group": (0.0, 0.0)}
    scale, zero = activation_scale(ranges["group"])
    assert scale > 0 and zero == 0
    # And zero is in the range of what never is.
    ranges = calibrate(model, {"y": "group"}, lambda: [{"x": np.array([5, 7], np.float32)}], method)
    assert ranges["group"] == (0.0, pytest.approx(7, rel=0.01))


def test_a_group_has_the_range_of_all_its_values_in_all_batches() -> None:
    x, *ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "low", "high"))
    nodes = [helper.make_node("Neg", ["x"], ["low"]), helper.make_node("Exp", ["x"], ["high"])]
    graph = helper.make_graph(nodes, "two", [x], ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = [{"x": np.array([number], np.float32)} for number in (1, 3, 2)]
    for method in ("minmax", "percentile"):
        ranges = calibrate(model, {"low": "group", "high": "group"}, lambda: feeds, method)
        assert ranges["group"] == pytest.approx((-3, np.exp(3)), abs=0.01)
    low, high = calibrate(model, {"low": "group"}, lambda: feeds, "percentile")["group"]
    assert -3 < low < -2.99 and high == 0  # the middle of a bin, though no value is positive


def test_what_a_decoder_reads_are_its_own_words(graphs: Graphs) -> None:
    encoder, decoder = graphs
    feeds = list(greedy_feeds(encoder, decoder, photos(batches=2), max_length=3))
    assert len(feeds) == 6
    token, state = np.full(2, START), run(encoder, next(photos()))["state"]
    for feed in feeds[:3]:
        np.testing.assert_array_equal(feed["token"], token)
        np.testing.assert_array_equal(feed["state"], state)
        step = run(decoder, feed)
        token, state = step["tokens"][:, 0], step["next_state"]


def test_verb(graphs: Graphs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "fp32", tmp_path / "int8"
    source.mkdir()
    for name, model in zip(("encoder", "decoder"), graphs, strict=True):
        onnx.save(model, source / f"{name}.onnx")
    Vocabulary([*SPECIALS, *(f"word{i}" for i in range(20))]).save(source / "vocabulary.txt")
    data = write_tiny_flickr8k(tmp_path / "data")
    assert main(["quantize", str(source), "--data", str(data), "--calibration", "3", "-o", str(output)]) == 0
    assert "encoder.onnx" in capsys.readouterr().out
    first = (output / "encoder.onnx").read_bytes()
    compared = ["quantize", str(source), "--data", str(data), "--calibration", "3", "--evaluate", "2"]
    assert main([*compared, "-o", str(output)]) == 0
    assert "2 photos (of the first 2; " in capsys.readouterr().out
    assert (output / "encoder.onnx").read_bytes() == first  # the same seed, the same photos, the same bytes
    record = json.loads((output / "quantization.json").read_text())
    assert (record["photos"], record["method"], record["seed"]) == (3, "mse", 1)
    whole = [(output / f"{name}.onnx").read_bytes() for name in ("encoder", "decoder")]
    for option, said in (("--seed=2", {"seed": 2}), ("--method=percentile", {"method": "percentile"})):
        command = ["quantize", str(source), "--data", str(data), "--calibration", "3", option]
        assert main([*command, "-o", str(tmp_path / "other")]) == 0
        assert json.loads((tmp_path / "other" / "quantization.json").read_text()) == {**record, **said}
        for name, graph in zip(("encoder", "decoder"), whole, strict=True):
            assert (tmp_path / "other" / f"{name}.onnx").read_bytes() != graph, (option, name)
    assert run(onnx.load(output / "encoder.onnx"), {"pixels": np.zeros((1, SIZE, SIZE, 3), np.uint8)})


def test_verb_writes_an_encoder_whose_biases_are_corrected_by_eight_batches(
    graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caplet_export.photos._BATCH_SIZE", 1)
    for name, model in zip(("encoder", "decoder"), graphs, strict=True):
        onnx.save(model, tmp_path / f"{name}.onnx")
    Vocabulary([*SPECIALS, *(f"word{i}" for i in range(20))]).save(tmp_path / "vocabulary.txt")
    data = write_tiny_flickr8k(tmp_path / "data", train=10, dev=1)
    assert main(["quantize", str(tmp_path), "--data", str(data), "-o", str(tmp_path / "out")]) == 0
    dataset = read_dataset(data)
    names = random.Random(1).sample(list(dataset.split("train")), 10)
    feeds = [{"pixels": pixels} for _, pixels in photo_batches(dataset, names, size=(SIZE, SIZE), task="test")]
    encoder = optimize_for_bytes(graphs[0])
    expected = correct_biases(encoder, quantize(encoder, lambda: feeds), feeds[:8])
    assert onnx.load(tmp_path / "out" / "encoder.onnx") == expected


@pytest.mark.parametrize(("recorded", "length"), [({"max_length": 7}, 7), ({}, 20)], ids=["recorded", "of 0.9"])
def test_verb_writes_captions_as_long_as_the_captioners(
    recorded: dict[str, int], length: int, graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And compares those of both graphs, greedily."""
    lengths: list[int] = []
    told: list[object] = []

    def watched(encoder: Any, decoder: Any, feeds: Iterator[Feed], length: int) -> Iterator[Feed]:
        lengths.append(length)
        return greedy_feeds(encoder, decoder, feeds, length)

    monkeypatch.setattr("caplet_export.calibrate.greedy_feeds", watched)

    def evaluate(bundle: Path, _: object, split: str, **options: object) -> None:
        manifest = load_bundle(bundle).manifest
        encoder = (bundle / "encoder.onnx").read_bytes()
        told.append((manifest.name, encoder, manifest.decoding.max_length, split, options))

    monkeypatch.setattr("caplet_export.evaluate.evaluate", evaluate)
    monkeypatch.setattr("caplet_export.compare.compare", lambda *_: None)
    monkeypatch.setattr("caplet_export.compare.format_comparison", lambda _: "")
    for name, model in zip(("encoder", "decoder"), graphs, strict=True):
        onnx.save(model, tmp_path / f"{name}.onnx")
    Vocabulary([*SPECIALS, *(f"word{i}" for i in range(20))]).save(tmp_path / "vocabulary.txt")
    parity = {"photos": 1, "identical_captions": 1, "max_difference": {}, "encoder_weights": "0", **recorded}
    (tmp_path / "parity.json").write_text(json.dumps(parity))
    data = write_tiny_flickr8k(tmp_path / "data", train=1, dev=1)
    command = ["quantize", str(tmp_path), "--data", str(data), "--evaluate", "1", "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == parity
    assert lengths == [length], "the encoder and the greedy search run once, though ranges take two passes"
    asked = length, "dev", {"beam_sizes": [1], "limit": 1}
    graphs_of = {"float": tmp_path, "8 bits": tmp_path / "out"}
    assert told == [(name, (folder / "encoder.onnx").read_bytes(), *asked) for name, folder in graphs_of.items()]


def test_bundles_that_a_killed_run_compared_are_cleared_by_the_next(
    graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, bundles = tmp_path / "float", []
    source.mkdir()
    for name, model in zip(("encoder", "decoder"), graphs, strict=True):
        onnx.save(model, source / f"{name}.onnx")
    Vocabulary([*SPECIALS, *(f"word{i}" for i in range(20))]).save(source / "vocabulary.txt")
    data = write_tiny_flickr8k(tmp_path / "data", train=1, dev=1)
    monkeypatch.setattr("caplet_export.evaluate.evaluate", lambda bundle, *_, **__: bundles.append(bundle))
    monkeypatch.setattr("caplet_export.compare.compare", lambda *_: None)
    monkeypatch.setattr("caplet_export.compare.format_comparison", lambda _: "")
    command = ["quantize", str(source), "--data", str(data), "--evaluate", "1", "-o", str(tmp_path / "out")]
    assert main(command) == 0
    for bundle in set(bundles):
        assert not bundle.exists()
        bundle.mkdir(parents=True)
        (bundle / "decoder.onnx").touch()  # left by a process that was killed
    assert main(command) == 0
    assert not [bundle for bundle in bundles if bundle.exists()]
    assert {path.name for path in tmp_path.iterdir()} == {"float", "data", "out"}


def test_a_captioner_that_begins_with_zeros_is_quantised() -> None:
    """As the tutorial's: zeros in the shape of the batch bring another `Cast` than that of the pixels."""
    config = dataclasses.replace(CONFIG, initial_state="zero", gated_context=False, deep_output=False)
    encoder = optimize_encoder(convert_encoder(build_tiny_extractor(), build_tiny_model(config)))
    small = quantize(optimize_for_bytes(encoder), photos)
    for feed in photos():
        said, expected = run(small, feed), run(encoder, feed)
        assert not said["state"].any()
        assert signal_to_noise(expected["features"], said["features"]) > 20


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("decoder", "encoder"), "encoder.onnx: another graph: expected an input 'pixels'"),
        (("encoder", "encoder"), "decoder.onnx: another graph: expected an input 'token'"),
        (("one photo", "decoder"), "encoder.onnx: another graph: expected 'pixels' to have 4 dimensions, found 3"),
        (("small", "decoder"), "encoder.onnx: 8-bit already"),
    ],
)
def test_verb_says_which_graph_is_another(
    graphs: Graphs,
    small: Graphs,
    files: tuple[str, str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one_photo = onnx.ModelProto()
    one_photo.CopyFrom(graphs[0])
    del one_photo.graph.input[0].type.tensor_type.shape.dim[0]
    models = {"encoder": graphs[0], "decoder": graphs[1], "small": small[0], "one photo": one_photo}
    for name, model in zip(("encoder", "decoder"), files, strict=True):
        onnx.save(models[model], tmp_path / f"{name}.onnx")
    data = write_tiny_flickr8k(tmp_path / "data")
    assert main(["quantize", str(tmp_path), "--data", str(data), "-o", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err


def test_verb_counts_the_photos_it_could_read(
    graphs: Graphs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "fp32", tmp_path / "int8"
    source.mkdir()
    for name, model in zip(("encoder", "decoder"), graphs, strict=True):
        onnx.save(model, source / f"{name}.onnx")
    Vocabulary([*SPECIALS, *(f"word{i}" for i in range(20))]).save(source / "vocabulary.txt")
    data = write_tiny_flickr8k(tmp_path / "data", train=3, dev=1)
    damaged, *rest = sorted((data / "Flicker8k_Dataset").iterdir())
    damaged.write_bytes(b"no photo")
    command = ["quantize", str(source), "--data", str(data), "-o"]
    assert main([*command, str(output)]) == 0
    assert json.loads((output / "quantization.json").read_text())["photos"] == 2
    assert capsys.readouterr().err.count(f"left out: {damaged}") == 1
    for photo in rest:
        photo.write_bytes(b"no photo")
    capsys.readouterr()
    assert main([*command, str(tmp_path / "other")]) == 1
    assert "none of 3 photos to calibrate by can be read" in capsys.readouterr().err
    write_split(data, "dev", [])
    assert main([*command, str(tmp_path / "other"), "--evaluate", "1"]) == 1
    assert "--evaluate needs at least one dev photo" in capsys.readouterr().err  # at once, and not when all is done
    (data / "Flickr_8k.devImages.txt").unlink()
    assert main([*command, str(tmp_path / "other"), "--evaluate", "1"]) == 1
    assert "no 'dev' split" in capsys.readouterr().err
    # And not in the place of what it is made of.
    assert main([*command, str(source)]) == 1
    assert "would replace what is read" in capsys.readouterr().err


def test_verb_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tiny_flickr8k(tmp_path / "data")
    (tmp_path / "graphs").mkdir()
    assert main(["quantize", str(tmp_path / "graphs"), "--data", str(data), "-o", str(tmp_path / "out")]) == 1
    assert "encoder.onnx" in capsys.readouterr().err
    (tmp_path / "graphs/encoder.onnx").write_bytes(b"not a graph")
    assert main(["quantize", str(tmp_path / "graphs"), "--data", str(data), "-o", str(tmp_path / "out")]) == 1
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_graphs_with_weights_in_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tiny_flickr8k(tmp_path / "data")
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "weights").write_bytes(bytes(4))
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="weights")
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [value], [outside])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (graphs / "encoder.onnx").write_bytes(model.SerializeToString())
    assert main(["quantize", str(graphs), "--data", str(data), "-o", str(tmp_path / "out")]) == 1
    assert "encoder.onnx: keeps weights outside of itself; export it" in capsys.readouterr().err
