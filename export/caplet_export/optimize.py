"""Exact rewrites of the converted graphs: the same function to float rounding, in fewer and cheaper operations.

They come before quantisation and rely on no layout or kernel of any one processor. Each takes a model and returns a
new one, which is equal if the pattern that is rewritten does not occur.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from caplet_export.onnx_graph import Graph, attribute, value_shapes

_GROUP = 4
"""Pixels in a group, see `group_pixels`."""


def optimize_encoder(model: onnx.ModelProto) -> onnx.ModelProto:
    """All rewrites of an Inception-like encoder that reads uint8 pixels."""
    for rewrite in (fold_batch_norm, fold_input_scaling, pool_after_projection, fuse_dense, zero_denormals):
        model = rewrite(model)
    return model


def optimize_for_bytes(model: onnx.ModelProto, *, group: bool = True) -> onnx.ModelProto:
    """Rewrites of an optimised encoder that pay only once it is 8-bit; `group_pixels` pays in onnxruntime only."""
    model = merge_sibling_convolutions(pool_as_convolution(model))
    return group_pixels(model) if group else model


def optimize_for_floats(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites of an optimised encoder that pay only if it stays in floats; in 8 bits they would round more often."""
    return winograd_before_pooling(dense_as_convolution(model))


def optimize_decoder(model: onnx.ModelProto) -> onnx.ModelProto:
    """All rewrites of a decoder. They are few because `caplet_export.convert` traces it with few and large products."""
    return zero_denormals(fuse_dense(model))


def fold_batch_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold a BatchNormalization into the weights and bias of the convolution before it.

    g * (conv(x) + b - m) / sqrt(v + e) + h is a convolution with its kernels scaled by g / sqrt(v + e).
    """
    graph = Graph(model)
    for norm in graph.of_type("BatchNormalization"):
        conv = graph.producer(norm.input[0], "Conv")
        if conv is None or graph.only_reader(conv.output[0]) is None:
            continue
        gain, shift, mean, variance = (graph.constants[name].astype(np.float64) for name in norm.input[1:])
        factor = gain / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        weights, bias = _weights_and_bias(graph, conv)
        _set_weights_and_bias(graph, conv, weights * factor[:, None, None, None], (bias - mean) * factor + shift)
        conv.output[0] = norm.output[0]
        graph.nodes.remove(norm)
    return graph.finish()


def fold_input_scaling(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold `(pixels * a + b)` between a uint8 input and the first convolution into that convolution.

    conv(a x + b) = (a W) * x + (c + b sum(W)), exact only where the convolution pads nothing: a padded zero stands for
    a scaled value of 0, not for a pixel of 0. The transpose from NHWC then moves uint8 instead of float.
    """
    graph = Graph(model)
    for cast in graph.of_type("Cast"):
        if cast.input[0] not in graph.inputs:
            continue
        chain, factor, shift = [cast], 1.0, 0.0
        while (node := graph.only_reader(chain[-1].output[0])) and (value := _scalar(graph, node)) is not None:
            if node.op_type in ("Mul", "Div"):
                value = value if node.op_type == "Mul" else 1.0 / value
                factor, shift = factor * value, shift * value
            else:
                shift += value if node.op_type == "Add" else -value
            chain.append(node)
        transpose = graph.only_reader(chain[-1].output[0], "Transpose")
        conv = graph.only_reader(transpose.output[0], "Conv") if transpose is not None else None
        if transpose is None or conv is None or not _is_unpadded(conv):
            continue
        weights, bias = _weights_and_bias(graph, conv)
        _set_weights_and_bias(graph, conv, weights * factor, bias + shift * weights.sum(axis=(1, 2, 3)))
        for dead in chain:
            graph.nodes.remove(dead)
        transpose.input[0] = cast.input[0]
        conv.input[0] = "pixels_float"
        graph.add_node("Cast", [transpose.output[0]], ["pixels_float"], to=onnx.TensorProto.FLOAT)
    return graph.finish()


def pool_after_projection(model: onnx.ModelProto) -> onnx.ModelProto:
    """Move an average pooling behind the 1x1 convolution that follows it, if that leaves it fewer channels to pool.

    Both are linear and act on different axes, so they commute. The bias commutes too, because an average that leaves
    padding out of its count maps a constant to itself. The ReLU stays behind both.
    """
    graph = Graph(model)
    for pool in graph.of_type("AveragePool"):
        conv = graph.only_reader(pool.output[0], "Conv")
        if conv is None or not _is_pointwise(graph, conv):
            continue
        pads_counted = attribute(pool, "count_include_pad", 0) and not _is_unpadded(pool)
        outputs, inputs = graph.constants[conv.input[1]].shape[:2]
        if pads_counted or attribute(pool, "ceil_mode", 0) or outputs >= inputs:
            continue
        projected = f"{conv.output[0]}/projected"
        conv.input[0], pool.input[0] = pool.input[0], projected
        pool.output[0], conv.output[0] = conv.output[0], projected
    return graph.finish()


def pool_as_convolution(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn an average pooling that leaves padding out of its count, with a ReLU behind it, into a depthwise convolution
    and a product.

    The convolution sums and divides by the size of the whole window; the product corrects windows that reach over the
    edge. The ReLU commutes with the product, whose factors are positive, and is moved between the two. Depthwise
    convolutions have fast 8-bit kernels, whereas poolings go through tables.
    """
    graph, shapes = Graph(model), value_shapes(model)
    for pool in graph.of_type("AveragePool"):
        kernel, pads = attribute(pool, "kernel_shape"), attribute(pool, "pads", [0, 0, 0, 0])
        source, result = shapes.get(pool.input[0], []), pool.output[0]
        unit_stride = all(stride == 1 for stride in attribute(pool, "strides", [1]))
        relu = graph.only_reader(result, "Relu")
        if len(source) != 4 or not all(source[1:]) or not unit_stride or attribute(pool, "ceil_mode", 0):
            continue
        if attribute(pool, "count_include_pad", 0) or relu is None or not _pads_by_numbers(pool):
            continue
        channels, size = source[1], kernel[0] * kernel[1]
        weights = np.full((channels, 1, *kernel), 1 / size, np.float32)
        inside = [
            _window_counts(length, width, before, after)
            for length, width, before, after in zip(source[2:], kernel, pads[:2], pads[2:], strict=True)
        ]
        factors = (size / np.outer(*inside)).astype(np.float32)[None, None]
        weights_name = graph.add_constant(weights, f"{result}/weights")
        graph.add_node("Conv", [pool.input[0], weights_name], [result], kernel_shape=kernel, pads=pads, group=channels)
        whole = relu.output[0]
        relu.output[0] = f"{whole}/whole_window"
        graph.add_node("Mul", [relu.output[0], graph.add_constant(factors, f"{result}/factors")], [whole])
        graph.nodes.remove(pool)
    return graph.finish()


def merge_sibling_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Merge 1x1 convolutions that read the same value, each followed by a ReLU, into one, and split the result."""
    graph = Graph(model)
    groups: dict[str, list[tuple[onnx.NodeProto, onnx.NodeProto]]] = {}
    for conv in graph.of_type("Conv"):
        relu = graph.only_reader(conv.output[0], "Relu")
        if _is_pointwise(graph, conv) and relu is not None:
            groups.setdefault(conv.input[0], []).append((conv, relu))
    for value, pairs in groups.items():
        if len(pairs) < 2:
            continue
        parts = [_weights_and_bias(graph, conv) for conv, _ in pairs]
        merged = graph.add_node("Conv", [value], [f"{value}/merged"], kernel_shape=[1, 1])
        weights, biases = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        _set_weights_and_bias(graph, merged, weights, biases)
        graph.add_node("Relu", [f"{value}/merged"], [f"{value}/merged/relu"])
        lengths = np.array([len(bias) for _, bias in parts], np.int64)
        sizes = graph.add_constant(lengths, f"{value}/sizes")
        graph.add_node("Split", [f"{value}/merged/relu", sizes], [relu.output[0] for _, relu in pairs], axis=1)
        for pair in pairs:
            for node in pair:
                graph.nodes.remove(node)
    return graph.finish()


def group_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the first convolution take four neighbouring pixels of a row as one of four times the channels.

    8-bit kernels take channels by fours; three colours go another way that is twice as slow (in onnxruntime: im2col).
    In NHWC a reshape groups pixels. With a stride of two each group makes two neighbouring outputs, which another
    reshape separates. Pixels of a group outside an output's window have weights of zero. The last group of a row is
    filled up with zeros, and outputs beyond the last column are cut off.
    """
    graph, shapes = Graph(model), value_shapes(model)
    for conv in graph.of_type("Conv"):
        cast = graph.producer(conv.input[0], "Cast")
        if cast is None or graph.only_reader(cast.output[0]) is None:
            continue
        transpose = graph.producer(cast.input[0], "Transpose")
        if transpose is None or attribute(transpose, "perm") != [0, 3, 1, 2]:
            continue
        if graph.only_reader(transpose.output[0]) is None:
            continue
        weights, bias = _weights_and_bias(graph, conv)
        stride_down, stride = attribute(conv, "strides", [1, 1])
        _, height, width, channels = shapes.get(transpose.input[0], [0, 0, 0, 0])
        plain = _is_unpadded(conv) and attribute(conv, "dilations", [1, 1]) == [1, 1]
        if not plain or channels != weights.shape[1] or not height or not width or _GROUP % stride:
            continue
        together = _GROUP // stride  # outputs of a group
        columns = (width - weights.shape[3]) // stride + 1
        steps = -(-columns // together)
        grouped = _grouped_weights(weights, stride)
        groups = steps + grouped.shape[3] - 1
        if groups * _GROUP < width:
            continue
        _group_input(graph, transpose, groups * _GROUP - width, [0, height, groups, _GROUP * channels])
        _set_weights_and_bias(graph, conv, grouped, np.tile(bias, together))
        _set_ints(conv, "kernel_shape", grouped.shape[2:])
        _set_ints(conv, "strides", [stride_down, 1])
        last = graph.only_reader(conv.output[0], "Relu") or conv
        rows = (height - weights.shape[2]) // stride_down + 1
        _separate_outputs(graph, last, [0, rows, steps * together, len(weights)], columns)
    return graph.finish()


def _group_input(graph: Graph, transpose: onnx.NodeProto, missing: int, shape: Sequence[int]) -> None:
    """Feed a transposition from NHWC groups of pixels, in this shape; zeros fill up the last group of a row."""
    pixels = transpose.input[0]
    pads = graph.add_constant(np.array([0, 0, 0, 0, 0, 0, missing, 0], np.int64), f"{pixels}/pads")
    graph.add_node("Pad", [pixels, pads], [f"{pixels}/padded"])
    sizes = graph.add_constant(np.array(shape, np.int64), f"{pixels}/shape")
    graph.add_node("Reshape", [f"{pixels}/padded", sizes], [f"{pixels}/grouped"])
    transpose.input[0] = f"{pixels}/grouped"


def _separate_outputs(graph: Graph, node: onnx.NodeProto, shape: Sequence[int], columns: int) -> None:
    """Separate a node's outputs for a group of pixels: reshape them to `shape`, NHWC, and keep the first `columns`."""
    whole, made = node.output[0], f"{node.output[0]}/grouped"
    node.output[0] = made
    sizes = graph.add_constant(np.array(shape, np.int64), f"{made}/shape")
    graph.add_node("Transpose", [made], [f"{made}/columns"], perm=[0, 2, 3, 1])
    graph.add_node("Reshape", [f"{made}/columns", sizes], [f"{made}/pixels"])
    bounds = (0, columns, 2)  # start, end, axis
    cut = [graph.add_constant(np.array([value], np.int64), f"{made}/bounds") for value in bounds]
    graph.add_node("Slice", [f"{made}/pixels", *cut], [f"{made}/cut"])
    graph.add_node("Transpose", [f"{made}/cut"], [whole], perm=[0, 3, 1, 2])


def winograd_before_pooling(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute 3x3 convolutions before a ReLU and a 3x3 maximum pooling of stride 2 with two thirds of the products.

    Winograd's F(2,3) makes two neighbouring columns of outputs of four products instead of six (Lavin and Gray, CVPR
    2016, section 4.1). Of columns d0 to d3 of the input and g0 to g2 of the kernel, these are

        even = g0 (d0 - d2) + p + m        p = (g0 + g1 + g2)/2 (d1 + d2)
        odd  = g2 (d3 - d1) + p - m        m = (g0 - g1 + g2)/2 (d2 - d1)

    Even and odd columns stay apart: the pooling takes the largest of either kind, and then the larger of the two. Where
    something else reads the outputs, interleaving them would cost what is saved. Sums of columns are depthwise
    convolutions, and a maximum is a sum with a ReLU, since onnxruntime has these, but no difference and no maximum, for
    the layout in blocks of channels in which it convolves.
    """
    graph, shapes = Graph(model), value_shapes(model)
    for conv in graph.of_type("Conv"):
        relu = graph.only_reader(conv.output[0], "Relu")
        pool = graph.only_reader(relu.output[0], "MaxPool") if relu is not None else None
        weights = graph.constants.get(conv.input[1])
        if relu is None or pool is None or weights is None or weights.shape[2:] != (3, 3) or not _is_ordinary(conv):
            continue
        if not _pads_by_numbers(conv) or not _halves_by_maximum(pool):
            continue
        before, after = (shapes.get(value, []) for value in (conv.input[0], conv.output[0]))
        if len(before) != 4 or len(after) != 4 or not before[3] or not after[3]:
            continue
        for node in (conv, relu, pool):
            graph.nodes.remove(node)
        _convolve_by_winograd(graph, conv, before[3], -(-after[3] // 2), pool.output[0])
    return graph.finish()


def _convolve_by_winograd(graph: Graph, conv: onnx.NodeProto, width: int, pairs: int, result: str) -> None:
    """Make `result` of a convolution of inputs of this width to so many pairs of columns, as `winograd_before_pooling`
    says.
    """
    base = f"{result}/winograd"
    weights, bias = _weights_and_bias(graph, conv)
    first, middle, last = np.moveaxis(weights, 3, 0)
    outputs, channels = weights.shape[:2]
    top, left, bottom, _ = attribute(conv, "pads", [0, 0, 0, 0])

    def add(kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        graph.add_node(kind, inputs, [f"{base}/{name}"], **attributes)
        return f"{base}/{name}"

    def weighted(value: str, taps: Sequence[int], name: str, channels: int, **attributes: Any) -> str:
        """Sums of neighbouring columns of each channel, with these weights."""
        kernel = np.tile(np.array(taps, np.float32), (channels, 1, 1, 1))
        inputs = [value, graph.add_constant(kernel, f"{base}/{name}/taps")]
        return add("Conv", inputs, name, kernel_shape=[1, len(taps)], group=channels, **attributes)

    def product(kernel: NDArray[np.float64], taps: Sequence[int], name: str, bias: float | NDArray[np.float64]) -> str:
        """A column of a kernel with weighted sums of d0, d1 and so on, of each pair of output columns."""
        right = max(2 * (pairs - 1) + len(taps) - left - width, 0)
        padded = {"strides": [1, 2], "pads": [0, left, 0, right]}
        inputs = weighted(conv.input[0], taps, f"{name}/columns", channels, **padded)
        node = graph.add_node("Conv", [inputs], [f"{base}/{name}"], kernel_shape=[3, 1], pads=[top, 0, bottom, 0])
        _set_weights_and_bias(graph, node, kernel[..., None], np.broadcast_to(bias, outputs))
        return f"{base}/{name}"

    plus = product((first + middle + last) / 2, [0, 1, 1], "plus", bias)
    minus = product((first - middle + last) / 2, [0, -1, 1], "minus", 0.0)
    total = add("Add", [plus, minus], "total")
    difference = add("Add", [weighted(minus, [-1], "negative", outputs), plus], "difference")
    even = add("Relu", [add("Add", [product(first, [1, 0, -1], "first", 0.0), total], "even")], "even/relu")
    odd = add("Relu", [add("Add", [product(last, [0, -1, 0, 1], "last", 0.0), difference], "odd")], "odd/relu")
    even = add("MaxPool", [even], "even/pooled", kernel_shape=[3, 2], strides=[2, 1])
    odd = add("MaxPool", [odd], "odd/pooled", kernel_shape=[3, 1], strides=[2, 1])
    # Odd columns stand between even ones; the last one is in no window, and may be none of the convolution's.
    odd = weighted(odd, [1, 0], "odd/inner", outputs)
    # In this order of the operands onnxruntime needs no copies: `even` is done before `odd` is begun.
    excess = add("Add", [weighted(even, [-1], "even/negative", outputs), odd], "excess")
    graph.add_node("Add", [even, add("Relu", [excess], "excess/relu")], [result])


def dense_as_convolution(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn a dense layer over the channels of a grid into a 1x1 convolution, so that its outputs, which are fewer, are
    what is laid out with the channels last.
    """
    graph, shapes = Graph(model), value_shapes(model)
    for product, addition, bias in _dense_layers(graph):
        matrix, reshape = graph.constants[product.input[1]], graph.producer(product.input[0], "Reshape")
        transpose = graph.producer(reshape.input[0], "Transpose") if reshape is not None else None
        if reshape is None or transpose is None or attribute(transpose, "perm") != [0, 2, 3, 1]:
            continue
        if any(graph.only_reader(node.output[0]) is None for node in (transpose, reshape)):
            continue
        sizes = graph.constants.get(reshape.input[1])
        if sizes is None or shapes.get(transpose.input[0], [0, 0])[1] != len(matrix):
            continue
        for node in (product, addition):
            graph.nodes.remove(node)
        result = addition.output[0]
        conv = graph.add_node("Conv", [transpose.input[0]], [f"{result}/grid"], kernel_shape=[1, 1])
        _set_weights_and_bias(graph, conv, matrix.T[..., None, None], graph.constants[bias])
        transpose.input[0] = conv.output[0]
        sizes = np.array([*sizes[:-1], matrix.shape[1]], np.int64)
        reshape.input[1] = graph.add_constant(sizes, f"{result}/sizes")
        reshape.output[0] = result
    return graph.finish()


def fuse_dense(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse a product of matrices and the addition of its bias into a Gemm, so that the bias can be quantised too."""
    graph, shapes = Graph(model), value_shapes(model)
    for product, addition, bias in _dense_layers(graph):
        if len(shapes.get(product.input[0], [])) != 2:
            continue
        graph.add_node("Gemm", [*product.input, bias], list(addition.output))
        graph.nodes.remove(product)
        graph.nodes.remove(addition)
    return graph.finish()


def zero_denormals(model: onnx.ModelProto) -> onnx.ModelProto:
    """Set weights too small for a normal float32 to zero: processors multiply them many times slower."""
    graph = Graph(model)
    for name, array in graph.constants.items():
        if array.dtype == np.float32:
            graph.constants[name] = np.where(np.abs(array) < np.finfo(np.float32).tiny, np.float32(0), array)
    return graph.finish()


def _dense_layers(graph: Graph) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, str]]:
    """Each product with a constant matrix, the addition of its bias, which alone reads it, and the bias's name."""
    for product in graph.of_type("MatMul"):
        addition, matrix = graph.only_reader(product.output[0], "Add"), graph.constants.get(product.input[1])
        if addition is None or matrix is None or matrix.ndim != 2:
            continue
        biases = [name for name in addition.input if name in graph.constants]
        if biases and graph.constants[biases[0]].shape == (matrix.shape[1],):
            yield product, addition, biases[0]


def _window_counts(length: int, width: int, before: int, after: int) -> NDArray[np.int64]:
    """How many positions of each window, which slides by one, lie inside `length` and not in the padding."""
    starts = np.arange(-before, length + after - width + 1)
    return np.minimum(starts + width, length) - np.maximum(starts, 0)


def _grouped_weights(weights: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """Weights [M,C,H,W] as [m*M,g*C,H,W'], over groups of g pixels, of which each makes m = g / stride outputs."""
    outputs, channels, height, width = weights.shape
    together = _GROUP // stride
    taps = -(-((together - 1) * stride + width) // _GROUP)  # groups that a window reaches over
    pixels = np.zeros((together, outputs, taps * _GROUP, channels, height), np.float64)
    for number in range(together):
        pixels[number, :, number * stride : number * stride + width] = weights.transpose(0, 3, 1, 2)
    split = pixels.reshape(together * outputs, taps, _GROUP * channels, height)
    grouped: NDArray[np.float64] = split.transpose(0, 2, 3, 1)
    return grouped


def _set_ints(node: onnx.NodeProto, name: str, values: Sequence[int]) -> None:
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, [int(value) for value in values])])


def _halves_by_maximum(node: onnx.NodeProto) -> bool:
    """Whether a maximum pooling is of 3x3 with a stride of 2 and no padding."""
    return (
        attribute(node, "kernel_shape") == [3, 3]
        and attribute(node, "strides") == [2, 2]
        and attribute(node, "dilations", [1, 1]) == [1, 1]
        and not attribute(node, "ceil_mode", 0)
        and len(node.output) == 1
        and _is_unpadded(node)
    )


def _is_pointwise(graph: Graph, conv: onnx.NodeProto) -> bool:
    weights = graph.constants.get(conv.input[1])
    return weights is not None and weights.shape[2:] == (1, 1) and _is_ordinary(conv) and _is_unpadded(conv)


def _is_ordinary(conv: onnx.NodeProto) -> bool:
    """Whether a convolution has one group, and neither strides nor dilations."""
    ones = (attribute(conv, name, [1, 1]) == [1, 1] for name in ("strides", "dilations"))
    return all(ones) and attribute(conv, "group", 1) == 1


def _is_unpadded(node: onnx.NodeProto) -> bool:
    """Whether a convolution or pooling pads nothing."""
    return _pads_by_numbers(node) and not any(attribute(node, "pads", []))


def _pads_by_numbers(node: onnx.NodeProto) -> bool:
    """Whether `pads` tells how a convolution or pooling pads. With `SAME_UPPER` and `SAME_LOWER` the size of its input
    tells instead.
    """
    return attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")


def _scalar(graph: Graph, node: onnx.NodeProto) -> float | None:
    """The constant number that is the second operand of an arithmetic node; None for any other node."""
    array = graph.constants.get(node.input[1]) if node.op_type in ("Mul", "Div", "Add", "Sub") else None
    return float(array.item()) if array is not None and array.size == 1 else None


def _weights_and_bias(graph: Graph, conv: onnx.NodeProto) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    weights = graph.constants[conv.input[1]].astype(np.float64)
    bias = graph.constants[conv.input[2]].astype(np.float64) if len(conv.input) > 2 else np.zeros(len(weights))
    return weights, bias


def _set_weights_and_bias(
    graph: Graph, conv: onnx.NodeProto, weights: NDArray[np.float64], bias: NDArray[np.float64]
) -> None:
    names = [
        graph.add_constant(weights.astype(np.float32), f"{conv.output[0]}/weights"),
        graph.add_constant(bias.astype(np.float32), f"{conv.output[0]}/bias"),
    ]
    del conv.input[1:]
    conv.input.extend(names)
