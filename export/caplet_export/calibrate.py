"""Ranges of activations, observed on photos, from which static quantisation takes its scales.

Statistics are kept per group of values that will share a scale, and updated batch by batch, so memory does not grow
with the calibration set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from caplet_export.onnx_graph import Session, needed_in_order
from caplet_export.ranges import BINS, MINMAX, RANGE_CHOICES, Histogram, Range
from caplet_export.text import START

Feed = Mapping[str, NDArray[Any]]
Feeds = Callable[[], Iterable[Feed]]


def calibrate(model: onnx.ModelProto, groups: Mapping[str, str], feeds: Feeds, method: str) -> dict[str, Range]:
    """The range in which each group of values is to be quantised, by group; zero always lies in it.

    Args:
        model: a float graph.
        groups: names of values to observe, and of the group each belongs to.
        feeds: function that returns a new iterator over the calibration set (inputs of the graph, batch by batch);
            called once for each pass, of which `minmax` takes one, the other methods two.
        method: one of `caplet_export.ranges.METHODS`.
    """
    if not groups:
        return {}
    extremes = _extremes(model, groups, feeds())
    if method == MINMAX:
        return extremes
    histograms = {
        group: Histogram(low, high, np.zeros(BINS, np.int64)) for group, (low, high) in extremes.items() if high > low
    }
    observe = Observer(model, list(groups))
    for feed in feeds():
        for value, array in zip(groups, observe(feed), strict=True):
            if groups[value] in histograms:
                histograms[groups[value]].add(array)
    return extremes | {group: RANGE_CHOICES[method](histogram) for group, histogram in histograms.items()}


def greedy_feeds(
    encoder: onnx.ModelProto, decoder: onnx.ModelProto, batches: Iterable[Feed], max_length: int
) -> Iterator[Feed]:
    """The inputs that a decoder reads, step by step, while it writes greedy captions of batches of photos.

    Every row goes on to `max_length` words: those after an `<end>` are no stranger than those that a wide beam tries.
    Each feed holds the encoder's outputs and `token` int64 [N].
    """
    encode, step = Session(encoder), Session(decoder)
    for photos in batches:
        encoded = encode(photos)
        feed = {**encoded, "token": np.full(len(encoded["state"]), START, np.int64)}
        for _ in range(max_length):
            yield feed
            said = step(feed)
            feed = {**feed, "token": said["tokens"][:, 0], "state": said["next_state"]}


class Observer:
    """Runs a graph and returns values inside it, or reductions of them.

    Args:
        model: the graph.
        values: names of the values.
        kinds: what is returned of each value: an operator, or several one after the other, as `Sign/ReduceMean`.
        axes: the axes over which operators that reduce do so; None for all.
        given: a feed that holds values inside the graph in place of its inputs; the graph goes on from these.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        values: Sequence[str],
        kinds: Sequence[str] = ("Identity",),
        axes: Sequence[int] | None = None,
        given: Feed | None = None,
    ) -> None:
        observed = onnx.ModelProto()
        observed.CopyFrom(model)
        graph = observed.graph
        names = []
        for value, kind in product(values, kinds):
            name = value
            for operator in kind.split("/"):
                source, name = name, f"{name}/{operator}"
                reduction = {"keepdims": 0, "axes": axes} if operator.startswith("Reduce") else {}
                graph.node.append(helper.make_node(operator, [source], [name], **reduction))
            names.append(name)
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        nodes = list(graph.node)
        if given is not None:
            nodes = [node for node in nodes if not given.keys() & set(node.output)]
            del graph.input[:]
            for name, array in given.items():
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                graph.input.append(helper.make_tensor_value_info(name, kind, [None, *array.shape[1:]]))
        # onnxruntime would also run what no output needs, and warn of constants that nothing reads.
        nodes = needed_in_order(nodes, names)
        read = {value for node in nodes for value in node.input}
        constants = [constant for constant in graph.initializer if constant.name in read]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(constants)
        self._session = Session(observed)

    def __call__(self, feed: Feed) -> list[NDArray[np.float32]]:
        """One array for each value and kind: all kinds of the first value, then those of the next."""
        return list(self._session(feed).values())


def _extremes(model: onnx.ModelProto, groups: Mapping[str, str], feeds: Iterable[Feed]) -> dict[str, Range]:
    """Smallest and largest value of each group, found inside the graph so that no whole activation leaves it."""
    ranges = dict.fromkeys(groups.values(), (0.0, 0.0))
    observe = Observer(model, list(groups), ("ReduceMin", "ReduceMax"))
    for feed in feeds:
        found = np.array(observe(feed)).reshape(-1, 2)
        for group, (low, high) in zip(groups.values(), found.tolist(), strict=True):
            ranges[group] = (min(low, ranges[group][0]), max(high, ranges[group][1]))
    return ranges
