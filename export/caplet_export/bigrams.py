"""Pairs of neighbouring words that people do not say: errors of grammar that scores by shared n-grams do not see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from caplet_export.text import END_TOKEN, START_TOKEN


class Bigrams:
    """Which pairs of neighbouring words people do not say ("a sunglasses", "in a of"), from the captions they wrote.

    A pair is implausible if it would occur at least 5 times with the words in random order, but occurs less than a
    fiftieth as often in the captions: its pointwise mutual information (Church and Hanks, 1990) is below log 1/50. A
    pair of rare words is never implausible, even if it is new. The beginning and the end of a caption count as words.
    """

    _EXPECTED, _SHARE = 5, 0.02

    def __init__(self, captions: Iterable[Sequence[str]]) -> None:
        self._pairs = Counter(pair for caption in captions for pair in _pairs(caption))
        self._first: Counter[str] = Counter()
        self._second: Counter[str] = Counter()
        for (first, second), count in self._pairs.items():
            self._first[first] += count
            self._second[second] += count
        self._total = self._pairs.total()

    def implausible(self, words: Sequence[str], *, ended: bool = True) -> list[tuple[str, str]]:
        """The implausible pairs of a caption; if it was cut off (not `ended`), it may break off after any word."""
        return [pair for pair in _pairs(words, ended=ended) if self._is_implausible(*pair)]

    def table(self, words: Sequence[str]) -> NDArray[np.bool_]:
        """bool [V,V]: whether people do not say the second of two of these V words after the first."""
        seconds = np.array([self._second[word] for word in words], np.int64)
        table = np.zeros((len(words), len(words)), bool)
        for row, first in enumerate(words):
            # Most pairs are of rare words: of Flickr8k's 59 million, chance would say 7,000 often enough.
            often = self._first[first] * seconds >= self._EXPECTED * self._total
            for column in np.flatnonzero(often).tolist():
                table[row, column] = self._is_implausible(first, words[column])
        return table

    def _is_implausible(self, first: str, second: str) -> bool:
        expected = self._first[first] * self._second[second] / max(self._total, 1)
        return expected >= self._EXPECTED and self._pairs[first, second] < self._SHARE * expected


def _pairs(words: Sequence[str], *, ended: bool = True) -> Iterable[tuple[str, str]]:
    return pairwise([START_TOKEN, *words, *([END_TOKEN] if ended else [])])
