"""Ranges of activations, from photos: what static quantisation needs to know.

Statistics are kept per group of values that will share a scale, and updated photo by photo, so memory does not grow
with the calibration set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

METHODS = ("minmax", "percentile", "mse")
BINS = 2048
PERCENTILE = 99.999
LEVELS = 256


@dataclass
class Histogram:
    """Counts of values in equal bins between `low` and `high`."""

    low: float
    high: float
    counts: NDArray[np.int64]

    def add(self, values: NDArray[np.float32]) -> None:
        """Count more values; those beyond the ends go into the outer bins."""
        bins = ((values.ravel() - self.low) * (BINS / (self.high - self.low))).astype(np.int32)
        self.counts += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        return self.low + (np.arange(BINS) + 0.5) * ((self.high - self.low) / BINS)


Range = tuple[float, float]


def calibrate(
    model: onnx.ModelProto,
    groups: Mapping[str, str],
    photos: Callable[[], Iterable[NDArray[np.uint8]]],
    method: str = "mse",
) -> dict[str, Range]:
    """The range, always with zero in it, in which each group of values is to be quantised.

    Args:
        model: a float graph that reads `pixels`.
        groups: names of values to observe, and of the group each belongs to.
        photos: starts a pass over the calibration set, batches uint8 [N,h,w,3]; called once for `minmax` and twice for
            the others.
        method: `minmax`; `percentile`, where a hundred-thousandth of the values at either end may be clipped; `mse`,
            the range that makes the mean squared error of the quantised values smallest.
    """
    extremes = _extremes(model, groups, photos())
    if method == "minmax":
        return extremes
    histograms = {
        group: Histogram(low, high, np.zeros(BINS, np.int64)) for group, (low, high) in extremes.items() if high > low
    }
    session = _observer(model, list(groups))
    for pixels in photos():
        for value, array in zip(groups, session.run(list(groups), {"pixels": pixels}), strict=True):
            if groups[value] in histograms:
                histograms[groups[value]].add(array)
    choose = percentile_range if method == "percentile" else mse_range
    return extremes | {group: choose(histogram) for group, histogram in histograms.items()}


def percentile_range(histogram: Histogram) -> Range:
    """The range that leaves out the rarest values at either end."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    cut = (100 - PERCENTILE) / 100
    centres = histogram.centres
    low = float(centres[np.searchsorted(share, cut)]) if histogram.low < 0 else 0.0
    high = float(centres[min(np.searchsorted(share, 1 - cut), BINS - 1)]) if histogram.high > 0 else 0.0
    return min(low, 0.0), max(high, 0.0)


def mse_range(histogram: Histogram) -> Range:
    """The range, among the full one shrunk in steps of a hundredth, with the smallest mean squared error."""
    centres, counts = histogram.centres, histogram.counts
    best, best_error = (histogram.low, histogram.high), np.inf
    for factor in np.linspace(0.3, 1.0, 71):
        low, high = factor * histogram.low, factor * histogram.high
        scale = (high - low) / (LEVELS - 1)
        inside = np.clip(centres, low, high)
        error = float(np.sum(counts * (centres - inside) ** 2) + np.sum(counts[inside == centres]) * scale**2 / 12)
        if error < best_error:
            best, best_error = (low, high), error
    return best


def _extremes(
    model: onnx.ModelProto, groups: Mapping[str, str], photos: Iterable[NDArray[np.uint8]]
) -> dict[str, Range]:
    """Smallest and largest value of each group, found inside the graph so that no whole activation leaves it."""
    reduced = onnx.ModelProto()
    reduced.CopyFrom(model)
    names = []
    for value in groups:
        for kind in ("ReduceMin", "ReduceMax"):
            names.append(f"{value}/{kind}")
            reduced.graph.node.append(helper.make_node(kind, [value], [names[-1]], keepdims=0))
    ranges = dict.fromkeys(groups.values(), (0.0, 0.0))
    session = _observer(reduced, names)
    for pixels in photos:
        found = np.array(session.run(names, {"pixels": pixels})).reshape(-1, 2)
        for group, (low, high) in zip(groups.values(), found.tolist(), strict=True):
            ranges[group] = (min(low, ranges[group][0]), max(high, ranges[group][1]))
    return ranges


def _observer(model: onnx.ModelProto, values: list[str]) -> onnxruntime.InferenceSession:
    """A session that gives these values out."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    observed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in values)
    return onnxruntime.InferenceSession(observed.SerializeToString(), providers=["CPUExecutionProvider"])
