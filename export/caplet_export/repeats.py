"""Words that people say twice in one caption: they seldom write "a dog and a dog", but they do repeat "a"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from caplet_export.text import NEVER_SAID, Vocabulary

_SHARE = 0.05
_LEAST = 10
"""Fewest captions that repeat a word, lest a rare one be let through by chance."""


def repeatable_ngrams(captions: Iterable[Sequence[str]], vocabulary: Vocabulary) -> tuple[tuple[int, ...], ...]:
    """The words, and the pairs of words in a row, that people repeat.

    Of the captions that hold such a word or pair, at least 1 in 20 and at least 10 hold it more than once.

    Args:
        captions: the words of each caption.
        vocabulary: the captioner's; words that it does not hold are passed over.

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
