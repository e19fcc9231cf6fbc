"""The range of values in which an activation is quantised, chosen from the histogram of its observed values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Range = tuple[float, float]

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
        edges = np.linspace(self.low, self.high, BINS + 1, dtype=np.float64)
        return (edges[1:] + edges[:-1]) / 2


def percentile_range(histogram: Histogram) -> Range:
    """The range without the lowest and the highest hundred-thousandth of the values, extended to zero."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    cut = (100 - PERCENTILE) / 100
    centres = histogram.centres
    low, high = (float(centres[np.searchsorted(share, s)]) for s in (cut, 1 - cut))
    # An end at zero stays exactly zero, as the middle of its bin lies on the other side.
    return min(low, 0.0), max(high, 0.0)


def mse_range(histogram: Histogram) -> Range:
    """The range with the smallest mean squared error among those of 30, 31, …, 100 % of the full one.

    The error is that of rounding each bin's centre, not the usual estimate of a twelfth of the squared step: so zero,
    which most outputs of a ReLU are, is exact.
    """
    centres, counts, width = histogram.centres, histogram.counts, histogram.high - histogram.low
    below = round(-histogram.low / width * (LEVELS - 1))  # levels below zero, as many in each of the ranges
    best, best_error = (histogram.low, histogram.high), np.inf
    for factor in np.linspace(0.3, 1.0, 71):
        scale = factor * width / (LEVELS - 1)
        rounded = scale * np.clip(np.rint(centres / scale), -below, LEVELS - 1 - below)
        error = float(np.sum(counts * (centres - rounded) ** 2))
        if error < best_error:
            best, best_error = (factor * histogram.low, factor * histogram.high), error
    return best


MINMAX = "minmax"
"""The method that takes the full range, for which no histogram is needed."""
RANGE_CHOICES: Mapping[str, Callable[[Histogram], Range]] = {"percentile": percentile_range, "mse": mse_range}
METHODS = (MINMAX, *RANGE_CHOICES)
DEFAULT_METHOD = "mse"
