"""8-bit graphs: the encoder by static quantisation in QDQ form, the decoder by 8-bit weights.

Encoder: activations unsigned 8-bit per tensor, weights signed 8-bit per output channel, biases 32-bit. Values that an
operator only moves or picks from (concatenation, maximum, split, transpose) share one scale, so that the operator works
on bytes and no second rounding happens; ReLUs vanish into the lower end of the range. onnxruntime then fuses every
convolution to QLinearConv, and the pixels enter as they are, with scale 1.

Weights use all 8 bits. On x86 without VNNI, 16-bit sums of unsigned by signed products may saturate; onnxruntime
avoids that with the session option `session.x64quantprecision = 1`, which caplet's runtime sets: it costs speed only
there, where `reduce_range` would cost accuracy everywhere. ARM64 and VNNI do not saturate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from caplet_export.calibrate import LEVELS, Range, calibrate
from caplet_export.onnx_graph import Graph

# Outputs of the first become 8-bit; the second only pass values on, so inputs and outputs have one scale.
_COMPUTING = ("Conv", "AveragePool", "Relu")
_SHARING = ("Concat", "MaxPool", "Split", "Transpose", "Reshape")


def quantize_encoder(
    model: onnx.ModelProto,
    photos: Callable[[], Iterable[NDArray[np.uint8]]],
    *,
    method: str = "mse",
    keep_float: Collection[str] = (),
) -> onnx.ModelProto:
    """The encoder with 8-bit convolutions, poolings and first dense layer.

    Args:
        model: an encoder after `caplet_export.optimize.optimize_encoder`.
        photos: starts a pass over the calibration photos, batches uint8 [N,h,w,3].
        method: one of `caplet_export.calibrate.METHODS`.
        keep_float: outputs of convolutions that are left in float.
    """
    groups = scale_groups(model)
    computed = {node.output[0] for node in model.graph.node if node.op_type in _COMPUTING}
    ranges = calibrate(model, {value: group for value, group in groups.items() if value in computed}, photos, method)
    return insert_qdq(model, groups, ranges, keep_float)


def scale_groups(model: onnx.ModelProto) -> dict[str, str]:
    """Every value that becomes 8-bit, with the name of the group of values whose scale it shares.

    A value that only a ReLU reads is none: the ReLU goes into the quantisation of what comes out of it.
    """
    graph = Graph(model)
    parent: dict[str, str] = {}

    def find(value: str) -> str:
        while parent[value] != value:
            value = parent[value]
        return value

    for node in graph.nodes:
        if node.op_type in _COMPUTING:
            reader = graph.only_reader(node.output[0])
            if reader is None or reader.op_type != "Relu":
                parent[node.output[0]] = node.output[0]
        elif node.op_type in _SHARING and node.input[0] in parent:
            values = [value for value in (*node.input, *node.output) if value not in graph.constants]
            for value in values:
                parent.setdefault(value, value)
                parent[find(value)] = find(values[0])
    return {value: find(value) for value in parent}


def insert_qdq(
    model: onnx.ModelProto, groups: Mapping[str, str], ranges: Mapping[str, Range], keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """Quantise and dequantise each value of `groups` in the range of its group, and the weights that it meets."""
    graph = Graph(model)
    for relu in graph.of_type("Relu"):
        producer = graph.producer(relu.input[0])
        if relu.output[0] in groups and producer is not None and producer.output[0] not in keep_float:
            producer.output[0] = relu.output[0]
            graph.nodes.remove(relu)

    scales: dict[str, float] = {}
    for cast in graph.of_type("Cast"):
        # Bytes from the start: what the cast makes of them is what dequantising by 1 makes.
        graph.nodes.remove(cast)
        scales[cast.output[0]] = 1.0
        parameters = _scale_constants(graph, cast.output[0], 1.0, 0)
        graph.add_node("DequantizeLinear", [cast.input[0], *parameters], [cast.output[0]])
    for value, group in groups.items():
        scale, zero_point = activation_scale(ranges[group])
        parameters = _scale_constants(graph, value, scale, zero_point)
        graph.rename_input(value, f"{value}/dequantized")
        graph.add_node("QuantizeLinear", [value, *parameters], [f"{value}/quantized"])
        graph.add_node("DequantizeLinear", [f"{value}/quantized", *parameters], [f"{value}/dequantized"])
        scales[f"{value}/dequantized"] = scale
    for node in graph.of_type("Conv", "MatMul"):
        if node.input[0] in scales and node.output[0] not in keep_float:
            _quantize_weights(graph, node, scales[node.input[0]])
    return graph.finish()


def activation_scale(limits: Range) -> tuple[float, int]:
    """Scale and zero point of unsigned 8-bit values that cover a range with zero in it."""
    low, high = limits
    scale = float(np.float32(max(high - low, 1e-8) / (LEVELS - 1)))
    return scale, round(min(max(-low / scale, 0), LEVELS - 1))


def quantize_weights(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Signed 8-bit weights, symmetric, and their scale for each index of `axis`."""
    others = tuple(dimension for dimension in range(weights.ndim) if dimension != axis)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    scale = np.maximum(largest / 127, np.float32(1e-12)).astype(np.float32)
    return np.rint(weights / scale).astype(np.int8), scale.ravel()


def _quantize_weights(graph: Graph, node: onnx.NodeProto, input_scale: float) -> None:
    axis = 0 if node.op_type == "Conv" else 1
    values, scale = quantize_weights(graph.constants[node.input[1]], axis)
    node.input[1] = _dequantized_constant(graph, values, scale, axis, f"{node.output[0]}/weights")
    if len(node.input) > 2:
        # The accumulator's own scale, so that the bias is added before any rounding.
        bias_scale = (scale.astype(np.float64) * input_scale).astype(np.float32)
        bias = np.rint(graph.constants[node.input[2]] / bias_scale.astype(np.float64))
        limits = np.iinfo(np.int32)
        bias = np.clip(bias, limits.min, limits.max).astype(np.int32)
        node.input[2] = _dequantized_constant(graph, bias, bias_scale, 0, f"{node.output[0]}/bias")


def _dequantized_constant(graph: Graph, values: NDArray[Any], scale: NDArray[np.float32], axis: int, name: str) -> str:
    inputs = [
        graph.add_constant(values, f"{name}/quantized"),
        graph.add_constant(scale, f"{name}/scale"),
        graph.add_constant(np.zeros(scale.shape, values.dtype), f"{name}/zero_point"),
    ]
    graph.add_node("DequantizeLinear", inputs, [f"{name}/dequantized"], axis=axis)
    return f"{name}/dequantized"


def _scale_constants(graph: Graph, value: str, scale: float, zero_point: int) -> list[str]:
    return [
        graph.add_constant(np.array(scale, np.float32), f"{value}/scale"),
        graph.add_constant(np.array(zero_point, np.uint8), f"{value}/zero_point"),
    ]
