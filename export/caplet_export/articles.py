"""The article before a vowel: a captioner chooses "a" before it knows the next word, and says "a orange shirt"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from caplet_export.text import UNKNOWN, Vocabulary

_USUAL, _BEFORE_VOWELS = "a", "an"
_LEAST = 2
"""Fewest times that people put "an" before a word, lest a slip of the pen make a rule."""


def article_forms(captions: Iterable[Sequence[str]], vocabulary: Vocabulary) -> tuple[tuple[int, int, int], ...]:
    """The words that people put "an" before, rather than "a".

    Args:
        captions: the words of each caption.
        vocabulary: the captioner's; without both articles in it, there is nothing to write.

    Returns:
        Ids of "a", "an" and such a word, as `caplet.manifest.Decoding.forms` has them, in the vocabulary's order.
    """
    usual, before_vowels = vocabulary.encode((_USUAL, _BEFORE_VOWELS))
    if UNKNOWN in (usual, before_vowels):
        return ()
    pairs = Counter(pair for words in captions for pair in pairwise(words))
    return tuple(
        (usual, before_vowels, number)
        for number, word in enumerate(vocabulary.words)
        if pairs[_BEFORE_VOWELS, word] >= max(_LEAST, 1 + pairs[_USUAL, word])
    )
