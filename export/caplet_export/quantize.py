"""8-bit graphs by static quantisation in QDQ form.

Activations are unsigned 8-bit with a scale per tensor, weights signed 8-bit with a scale per output channel, biases
32-bit. Values that an operator only moves or picks from (concatenation, maximum, split, transpose) share one scale, so
that the operator works on bytes and rounds nothing again; ReLUs vanish into the lower end of the range. onnxruntime
then fuses every convolution to QLinearConv and every dense layer to a product of bytes with a float result; pixels
enter as they are, with scale 1.

The decoder is quantised statically too, not dynamically: a dynamic range is taken over the whole batch, and a caption
would depend on what else is in the batch, or in the beam.

No sum saturates. x86 without VNNI multiplies unsigned by signed bytes and adds the products of two neighbours in 16
bits (`vpmaddubsw`), where 255·127 twice does not fit; VNNI and ARM64 add in 32. So here the weights of two neighbours
of one sign add up to 128 at most. That lowers the signal-to-quantisation-noise ratio of the features by less than 1 dB,
where the whole bit of onnxruntime's `reduce_range` lowers it by more than 3 dB, and such processors need no exact
kernels (`session.x64quantprecision`), which take half as long again: whoever runs the graphs gets the same numbers
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from caplet_export.calibrate import Feeds, calibrate
from caplet_export.errors import ConfigurationError
from caplet_export.onnx_graph import Graph, attribute
from caplet_export.ranges import DEFAULT_METHOD, LEVELS, Range

# Outputs of computing operators become 8-bit; sharing ones only pass values on, so inputs and outputs have one scale.
_COMPUTING = ("Conv", "AveragePool", "Relu")
_SHARING = ("Concat", "MaxPool", "Split", "Transpose", "Reshape", "Slice")
_FEW_COLUMNS = 4
# 255 of an activation times this fits into 16 bits with a sign.
_PAIR = 128


def quantize(model: onnx.ModelProto, feeds: Feeds, *, method: str = DEFAULT_METHOD) -> onnx.ModelProto:
    """An encoder or decoder in 8 bits, with ranges observed on the calibration feeds.

    Args:
        model: a float graph, after `caplet_export.optimize`.
        feeds: function that returns a new iterator over inputs of the graph; called once per pass.
        method: one of `caplet_export.ranges.METHODS`.
    """
    groups = scale_groups(model)
    # Values that are moved or picked from values of their group lie in the range of those.
    moved = {
        value
        for node in model.graph.node
        if node.op_type in _SHARING
        for value in node.output
        if groups.get(value) == groups.get(node.input[0])
    }
    observed = {value: group for value, group in groups.items() if value not in moved}
    return insert_qdq(model, groups, calibrate(model, observed, feeds, method))


def check_float_graph(model: onnx.ModelProto, path: Path) -> None:
    """Raise a ConfigurationError if the graph, which was read from `path`, is 8-bit already."""
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise ConfigurationError(f"{path}: 8-bit already; quantize what `caplet-export convert` wrote")


def scale_groups(model: onnx.ModelProto) -> dict[str, str]:
    """Every value that becomes 8-bit, with the name of the group of values whose scale it shares.

    These are the outputs of convolutions, average poolings and ReLUs, except those that only a ReLU reads; their
    products with positive constants; values moved or picked from all these; and inputs of products with a constant
    matrix.
    """
    graph = Graph(model)
    parent: dict[str, str] = {}

    def find(value: str) -> str:
        while parent[value] != value:
            value = parent[value]
        return value

    for node in graph.nodes:
        if node.op_type in _COMPUTING:
            if graph.only_reader(node.output[0], "Relu") is None:
                parent[node.output[0]] = node.output[0]
        elif _is_scaling(graph, node) and node.input[0] in parent:
            parent[node.output[0]] = node.output[0]
        elif node.op_type in _SHARING and node.input[0] in parent:
            values = [value for value in (*node.input, *node.output) if value not in graph.constants]
            for value in values:
                parent.setdefault(value, value)
                parent[find(value)] = find(values[0])
    for node in graph.nodes:
        if _is_dense(graph, node):
            parent.setdefault(node.input[0], node.input[0])
    return {value: find(value) for value in parent}


def insert_qdq(model: onnx.ModelProto, groups: Mapping[str, str], ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """Quantise and dequantise each value of `groups` in the range of its group, and the weights that it meets.

    A value that is made in floats is in bytes for the products with constant matrices alone: whatever else reads it, as
    the GRU does its state to carry it on, reads it unrounded.
    """
    graph = Graph(model)
    in_bytes = _made_in_bytes(graph)
    dense = [node for node in graph.nodes if _is_dense(graph, node)]
    for relu in graph.of_type("Relu"):
        producer, reader = graph.producer(relu.input[0]), graph.only_reader(relu.input[0])
        if relu.output[0] in groups and producer is not None and reader is not None:
            producer.output[0] = relu.output[0]
            graph.nodes.remove(relu)

    scales: dict[str, float] = {}
    for cast in graph.of_type("Cast"):
        if attribute(cast, "to") != onnx.TensorProto.FLOAT:
            continue  # of a shape, which a state of zeros is made from
        # The pixels are bytes already: the cast becomes a dequantisation with scale 1, which does the same.
        graph.nodes.remove(cast)
        scales[cast.output[0]] = 1.0
        parameters = _scale_constants(graph, cast.output[0], 1.0, np.uint8(0))
        graph.add_node("DequantizeLinear", [cast.input[0], *parameters], [cast.output[0]])
    for value, group in groups.items():
        scale, zero_point = activation_scale(ranges[group])
        parameters = _scale_constants(graph, value, scale, np.uint8(zero_point))
        for node in graph.nodes if value in in_bytes else dense:
            node.input[:] = [f"{value}/dequantized" if name == value else name for name in node.input]
        graph.add_node("QuantizeLinear", [value, *parameters], [f"{value}/quantized"])
        graph.add_node("DequantizeLinear", [f"{value}/quantized", *parameters], [f"{value}/dequantized"])
        scales[f"{value}/dequantized"] = scale
    for lookup in graph.of_type("Gather"):
        if _is_lookup(graph, lookup):
            _quantize_table(graph, lookup)
    for node in graph.of_type("Mul"):
        if node.input[0] in scales and _is_scaling(graph, node):
            _quantize_factors(graph, node)
    for node in graph.of_type("Conv", "MatMul", "Gemm"):
        if node.input[0] in scales:
            _quantize_weights(graph, node, scales[node.input[0]])
    return graph.finish()


def _made_in_bytes(graph: Graph) -> set[str]:
    """Values that an operator gives as bytes: of a convolution, pooling or ReLU, or moved or scaled from such."""
    made: set[str] = set()
    for node in graph.nodes:
        works_on_bytes = node.op_type in _SHARING or _is_scaling(graph, node)
        if node.op_type in _COMPUTING or (works_on_bytes and node.input[0] in made):
            made.update(node.output)
    return made


def activation_scale(limits: Range) -> tuple[float, int]:
    """Scale and zero point of unsigned 8-bit values that cover a range in which zero lies."""
    low, high = limits
    scale = float(np.float32(max(high - low, 1e-8) / (LEVELS - 1)))
    return scale, round(-low / scale)


def quantize_weights(
    weights: NDArray[np.float32], axis: int, least_scale: float | NDArray[np.float32] = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Signed 8-bit weights in the shape of `weights`, symmetric, and their scales float32 [output channels].

    No two neighbours saturate (see `saturates`): pairs are clipped, or the whole channel uses less of the range. Of the
    scales that are tried, each channel gets the one with the smallest squared error.

    Args:
        weights: of a convolution [output,input,height,width], or a matrix.
        axis: the axis of the output channels.
        least_scale: a scale below which none is chosen, or one for each output channel.
    """
    rows, restore = _rows(weights, axis)
    finest = np.maximum(np.abs(rows).max(axis=1) / 127, np.maximum(least_scale, np.float32(1e-12)))[:, None]
    scale, least = finest, np.full((len(rows), 1), np.inf, np.float32)
    # With the last factor no weight is above 64 and no pair is clipped, so a constant kernel, as of a mean, is exact.
    for factor in np.linspace(1, 127 / (_PAIR // 2), 33, dtype=np.float32):
        candidate = finest * factor
        error = np.square(_clip_pairs(rows / candidate) * candidate - rows).sum(axis=1, keepdims=True)
        scale, least = np.where(error < least, candidate, scale), np.minimum(error, least)
    return restore(_clip_pairs(rows / scale).astype(np.int8)), scale.ravel()


def saturates(model: onnx.ModelProto) -> bool:
    """Whether sums of products may saturate on x86 without VNNI, in a graph by `quantize` or another one in QDQ form:
    whether any two neighbours of one sign among a channel's weights add up to more than 128.

    Neighbours are weights that meet in one instruction: with a channel's weights in the order of kernel rows, kernel
    columns and input channels, the first and second, the third and fourth, and so on.
    """
    graph = Graph(model)
    for node in graph.of_type("Conv", "MatMul", "Gemm"):
        source = graph.producer(node.input[1])
        weights = graph.constants.get(source.input[0] if source is not None else node.input[1])
        if weights is None or weights.dtype != np.int8:
            continue
        rows, _ = _rows(weights, _output_axis(node))
        if _excess(*_pairs(rows)).any():
            return True
    return False


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of a node's weights that is its output channels."""
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def _rows(weights: NDArray[Any], axis: int) -> tuple[NDArray[Any], Callable[[NDArray[Any]], NDArray[Any]]]:
    """Weights as [output channels, K] in the order in which they are multiplied, and the way back."""
    order = [axis, *(dimension for dimension in range(weights.ndim) if dimension != axis)]
    if weights.ndim == 4:
        order = [0, 2, 3, 1]  # of [output, input, height, width]
    moved = weights.transpose(order)
    return moved.reshape(len(moved), -1), lambda rows: rows.reshape(moved.shape).transpose(np.argsort(order))


def _pairs(rows: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The first and the second neighbours in rows [channels, K], each [channels, pairs]; if K is odd, the last one's
    neighbour is 0.
    """
    padded = np.pad(rows.astype(np.float32), ((0, 0), (0, rows.shape[1] % 2)))
    return padded[:, ::2], padded[:, 1::2]


def _excess(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """By how much the sum of each two neighbours of one sign exceeds `_PAIR`, [channels, pairs]."""
    return np.where(first * second > 0, np.maximum(np.abs(first) + np.abs(second) - _PAIR, 0), 0)


def _clip_pairs(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [channels, K] rounded to whole numbers, of which neighbours of one sign add up to `_PAIR` at most."""
    first, second = _pairs(np.rint(rows))
    half = _excess(first, second) / 2
    clipped = np.empty((len(rows), 2 * half.shape[1]), np.float32)
    clipped[:, ::2] = first - np.sign(first) * np.ceil(half)
    clipped[:, 1::2] = second - np.sign(second) * np.floor(half)
    return clipped[:, : rows.shape[1]]


def _quantize_weights(graph: Graph, node: onnx.NodeProto, input_scale: float) -> None:
    axis = _output_axis(node)
    bias = graph.constants[node.input[2]] if len(node.input) > 2 else np.zeros(1, np.float32)
    # Where the weights are next to nothing, a scale at which the bias fits into 32 bits, and its correction as well.
    least_scale = (np.abs(bias) / (2**30 * input_scale)).astype(np.float32)
    values, scale = quantize_weights(graph.constants[node.input[1]], axis, least_scale)
    node.input[1] = _dequantized_constant(graph, values, scale, axis, f"{node.output[0]}/weights")
    if len(node.input) > 2:
        # The accumulator's own scale, so that the bias is added before any rounding.
        bias_scale = (scale.astype(np.float64) * input_scale).astype(np.float32)
        steps = np.rint(bias / bias_scale.astype(np.float64)).astype(np.int32)
        node.input[2] = _dequantized_constant(graph, steps, bias_scale, 0, f"{node.output[0]}/bias")


def _quantize_table(graph: Graph, lookup: onnx.NodeProto) -> None:
    """Make a table 8-bit, with a scale per column, which is possible as its rows are added and not multiplied."""
    value, table = lookup.output[0], graph.constants[lookup.input[0]]
    scale = np.maximum(np.abs(table).max(axis=0) / 127, np.float32(1e-12)).astype(np.float32)
    lookup.input[0] = graph.add_constant(np.rint(table / scale).astype(np.int8), f"{lookup.input[0]}/quantized")
    lookup.output[0] = f"{value}/quantized"
    parameters = _scale_constants(graph, value, scale, np.zeros(scale.shape, np.int8))
    graph.add_node("DequantizeLinear", [lookup.output[0], *parameters], [value], axis=1)


def _quantize_factors(graph: Graph, node: onnx.NodeProto) -> None:
    """Make positive constant factors 8-bit, in the number of levels that fits best; simple fractions are then exact."""
    factors = graph.constants[node.input[1]]
    errors = {
        levels: float(np.abs(np.rint(factors * (levels / factors.max())) / levels * factors.max() - factors).max())
        for levels in range(LEVELS // 2, LEVELS)
    }
    levels = min(errors, key=lambda candidate: errors[candidate])
    scale = float(factors.max()) / levels
    values = np.rint(factors / scale).astype(np.uint8)
    node.input[1] = _dequantized_constant(graph, values, np.array(scale, np.float32), None, f"{node.output[0]}/factors")


def _is_scaling(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node multiplies by positive constants."""
    factors = graph.constants.get(node.input[1]) if node.op_type == "Mul" else None
    return factors is not None and bool((factors > 0).all())


def _is_dense(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node multiplies by a constant matrix of many columns; attention scores, of few, gain nothing."""
    matrix = graph.constants.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
    return matrix is not None and matrix.ndim == 2 and matrix.shape[_output_axis(node)] > _FEW_COLUMNS


def _is_lookup(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node looks up rows of a constant table."""
    table = graph.constants.get(node.input[0])
    return table is not None and table.dtype == np.float32 and table.ndim == 2


def _dequantized_constant(
    graph: Graph, values: NDArray[Any], scale: NDArray[np.float32], axis: int | None, name: str
) -> str:
    """Add 8-bit or 32-bit values with a scale for each place on an axis, or one for all; return what they stand for."""
    constant = graph.add_constant(values, f"{name}/quantized")
    inputs = [constant, *_scale_constants(graph, name, scale, np.zeros(scale.shape, values.dtype))]
    graph.add_node("DequantizeLinear", inputs, [f"{name}/dequantized"], axis=axis)
    return f"{name}/dequantized"


def _scale_constants(
    graph: Graph, value: str, scale: float | NDArray[np.float32], zero_point: np.uint8 | NDArray[Any]
) -> list[str]:
    """Add a value's scale and zero point, which has the type of the quantised value; return their names."""
    return [
        graph.add_constant(np.asarray(scale, np.float32), f"{value}/scale"),
        graph.add_constant(np.asarray(zero_point), f"{value}/zero_point"),
    ]
