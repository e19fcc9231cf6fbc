"""Bias correction: rounding and clipping shift the mean of a channel, and its bias is moved to restore it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from caplet_export.calibrate import Feed, Observer
from caplet_export.onnx_graph import Graph

_RARE = 0.01
_SELDOM = 0.05
"""A channel that is positive at a smaller share of places than `_RARE` is left alone; one below `_SELDOM` is corrected
as if at that share, since so few places are a poor estimate."""


def correct_biases(model: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Iterable[Feed]) -> onnx.ModelProto:
    """The quantised encoder with biases that make the mean of each channel what it is in the float encoder.

    The bias correction of Nagel et al. (ICCV 2019, section 4.2), measured, layer by layer from the pixels on. Means are
    matched after the ReLU, not before: before it they are dominated by values that it removes, and matching those lets
    the signal that passes shrink layer by layer. A mean that is d too low needs a bias that is d / p higher, p being
    the share of places where the ReLU's output is positive.

    Args:
        model: the float graph that was quantised.
        quantized: what `caplet_export.quantize` made of it.
        feeds: inputs to take the means over, held in memory.
    """
    batches = list(feeds)
    graph, reference = Graph(quantized), Graph(model)
    levels = _levels(graph)
    values = [node.output[0] for level in levels for node in level]
    wanted = dict(zip(values, _means(model, values, batches), strict=True))
    for level in tqdm(levels, desc="biases", unit="layer", disable=None, leave=False):
        found = _means(graph.finish(), [f"{node.output[0]}/dequantized" for node in level], batches)
        for node, (mean_now, passing_now) in zip(level, found, strict=True):
            mean, passing = wanted[node.output[0]]
            producer = reference.producer(node.output[0])
            share = np.maximum(passing, passing_now)
            if producer is None or producer.op_type != "Relu":
                share = np.ones_like(share)
            change = np.where(share > _RARE, (mean - mean_now) / np.maximum(share, _SELDOM), 0.0)
            source = graph.producer(node.input[2])
            assert source is not None
            bias, scale = (graph.constants[name] for name in source.input[:2])
            graph.constants[source.input[0]] = (bias + np.rint(change / scale)).astype(np.int32)
    return graph.finish()


def _levels(graph: Graph) -> list[list[onnx.NodeProto]]:
    """Convolutions with a bias, those that do not depend on each other together, from the pixels on."""
    depth: dict[str, int] = {}
    levels: dict[int, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        here = max((depth.get(value, 0) for value in node.input), default=0) + (node.op_type == "Conv")
        depth.update(dict.fromkeys(node.output, here))
        if node.op_type == "Conv" and len(node.input) > 2:
            levels.setdefault(here, []).append(node)
    return [levels[level] for level in sorted(levels)]


def _means(
    model: onnx.ModelProto, values: Sequence[str], batches: Sequence[Feed]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Of values [N,C,H,W] each channel's mean and the share of its places that are positive, float64 [C]."""
    observe = Observer(model, values, ("ReduceMean", "Sign/ReduceMean"), axes=(2, 3))
    runs = [observe(feed) for feed in batches]
    means = [np.concatenate(parts).mean(axis=0, dtype=np.float64) for parts in zip(*runs, strict=True)]
    return list(zip(means[::2], means[1::2], strict=True))
