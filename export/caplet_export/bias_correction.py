"""Bias correction: rounding and clipping shift a channel's mean, and a change of its bias restores it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from caplet_export.calibrate import Feed, Observer
from caplet_export.onnx_graph import Graph
from caplet_export.progress import ProgressBar

_RARE = 0.01
_SELDOM = 0.05
"""A channel that is positive at no more than the share `_RARE` of its places is left alone; one below `_SELDOM` is
corrected as if its share were `_SELDOM`, since an estimate from so few places is poor."""


def correct_biases(model: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Iterable[Feed]) -> onnx.ModelProto:
    """The quantised encoder with biases that give each channel of a convolution its mean in the float encoder.

    The bias correction of Nagel et al. (ICCV 2019, section 4.2), measured, layer by layer from the pixels on. Means are
    matched after the ReLU: before it they are dominated by values that it removes, and matching those would let the
    signal that passes shrink layer by layer. A mean that is d too low needs a bias that is d / p higher, where p is the
    share of places at which the ReLU's output is positive.

    Args:
        model: the float graph that was quantised.
        quantized: the graph that `caplet_export.quantize` made of it; is not changed.
        feeds: inputs to take the means over, held in memory.
    """
    batches = list(feeds)
    graph, reference = Graph(quantized), Graph(model)
    depth = _depths(graph)
    levels = _levels(graph, depth)
    values = [node.output[0] for level in levels for node in level]
    wanted = dict(zip(values, _means(model, values, batches), strict=True))
    corrected = graph.finish()
    for level in ProgressBar(levels, desc="biases", unit="layer"):
        found = _means(corrected, [f"{node.output[0]}/dequantized" for node in level], batches)
        for node, (mean_now, passing_now) in zip(level, found, strict=True):
            mean, passing = wanted[node.output[0]]
            share = np.maximum(passing, passing_now)
            if reference.producer(node.output[0], "Relu") is None:
                share = np.ones_like(share)
            change = np.where(share > _RARE, (mean - mean_now) / np.maximum(share, _SELDOM), 0.0)
            source = graph.producer(node.input[2])
            assert source is not None
            bias, scale = (graph.constants[name] for name in source.input[:2])
            graph.constants[source.input[0]] = (bias + np.rint(change / scale)).astype(np.int32)
        corrected = graph.finish()
        # What is done is not run again: the deeper layers go on from what they read of it.
        if kept := _read_below(graph, depth, depth[level[0].output[0]]):
            observe = Observer(corrected, kept, given=batches[0])
            batches = [dict(zip(kept, observe(batch), strict=True)) for batch in batches]
    return corrected


def _depths(graph: Graph) -> dict[str, int]:
    """How many convolutions, one after the other, lead to each value that a node makes."""
    depth: dict[str, int] = {}
    for node in graph.nodes:
        here = max((depth.get(value, 0) for value in node.input), default=0) + (node.op_type == "Conv")
        depth.update(dict.fromkeys(node.output, here))
    return depth


def _levels(graph: Graph, depth: Mapping[str, int]) -> list[list[onnx.NodeProto]]:
    """Convolutions with a bias from the pixels on, grouped by depth: those of one group do not depend on each other."""
    levels: dict[int, list[onnx.NodeProto]] = {}
    for node in graph.of_type("Conv"):
        if len(node.input) > 2:
            levels.setdefault(depth[node.output[0]], []).append(node)
    return [levels[level] for level in sorted(levels)]


def _read_below(graph: Graph, depth: Mapping[str, int], level: int) -> list[str]:
    """Values in bytes, no deeper than `level`, that nodes deeper than that read."""
    deeper = {value for node in graph.nodes if depth[node.output[0]] > level for value in node.input}
    return [
        node.input[0]
        for node in graph.of_type("DequantizeLinear")
        if node.output[0] in deeper and depth[node.output[0]] <= level and node.input[0] not in graph.constants
    ]


def _means(
    model: onnx.ModelProto, values: Sequence[str], batches: Sequence[Feed]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For each of `values` [N,C,H,W] the channels' means and the shares of positive places, float64 [C] each."""
    observe = Observer(model, values, ("ReduceMean", "Sign/ReduceMean"), axes=(2, 3), given=batches[0])
    runs = [observe(feed) for feed in batches]
    means = [np.concatenate(parts).mean(axis=0, dtype=np.float64) for parts in zip(*runs, strict=True)]
    return list(zip(means[::2], means[1::2], strict=True))
