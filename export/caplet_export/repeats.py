"""Which words people say twice in one caption: "a dog and a dog" is seldom one of two dogs, but "a" comes again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from caplet_export.text import NEVER_SAID, Vocabulary

_SHARE = 0.05
_LEAST = 10
"""Captions, so that a word which is rare is not let through by chance."""


def repeatable_ngrams(captions: Iterable[Sequence[str]], vocabulary: Vocabulary) -> tuple[tuple[int, ...], ...]:
    """The words, and the pairs of words in a row, that people repeat.

    Of the captions that hold one of these at all, at least 1 in 20 and no fewer than 10 hold it more than once.

    Args:
        captions: the words of each.
        vocabulary: of the captioner; what it does not hold is passed over.

    Returns:
        Ids of one or of two words each, as `caplet.manifest.Decoding.repeatable` has them, the most frequent first.
    """
    said: Counter[tuple[int, ...]] = Counter()
    repeated: Counter[tuple[int, ...]] = Counter()
    for words in captions:
        ids = vocabulary.encode(words)
        for ngram, count in Counter([*zip(ids, strict=True), *pairwise(ids)]).items():
            said[ngram] += 1
            repeated[ngram] += count > 1
    return tuple(
        ngram
        for ngram, captions_with in said.most_common()
        if repeated[ngram] >= max(_LEAST, _SHARE * captions_with) and not set(ngram) & set(NEVER_SAID)
    )
