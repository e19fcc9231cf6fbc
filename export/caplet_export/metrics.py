"""Score captions as coco-caption does, without Java: its tokenisation, BLEU, ROUGE-L and CIDEr-D.

Sources: Papineni et al. 2002 (BLEU), Lin and Och 2004 (ROUGE-L), Vedantam et al. 2015 (CIDEr-D), and coco-caption
(`pycocoevalcap`) where the papers leave something open. The tests compare these scores with coco-caption's.

Words go in, not text: `tokenize` first. Whole-split scores are in percent, so a CIDEr-D that coco-caption prints as
0.586 reads 58.6 here; `CiderD.score`, the reward of self-critical training, stays on coco-caption's own scale.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet_export.bigrams import Bigrams
from caplet_export.flickr8k import Dataset
from caplet_export.text import END_TOKEN
from caplet_export.tokenizer import tokenize as tokenize  # one of the scorer's steps, offered here like the others

Words = Sequence[str]
References = Mapping[str, Sequence[Words]]
Hypotheses = Mapping[str, Words]
_Gram = tuple[str, ...]

TITLES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
}
"""Titles of the corpus scores in tables, by their fields in `Scores`."""
METRICS = tuple(TITLES)

ORDERS = 4
"""BLEU and CIDEr-D count n-grams of one word up to this many."""
SIGMA = 6.0
"""Width of CIDEr-D's penalty on a difference in length."""
BETA = 1.2
"""Weight of recall in ROUGE-L."""
_RESAMPLES, _SEED = 2000, 0  # of the bootstrap


def note_on_limit(limit: int | None) -> str:
    """What follows the number of photos that were scored; empty for a whole split. CIDEr-D takes its document
    frequencies from fewer photos where only the first `limit` were scored.
    """
    return f" (of the first {limit}; CIDEr-D not comparable with that of the whole split)" if limit else ""


def signed(difference: float, digits: int) -> str:
    """A difference with its sign and so many decimals; one that is nothing at these is +0.0, not -0.0."""
    text = f"{difference:+.{digits}f}"
    return text if float(text) else text.replace("-", "+")


def references_of(dataset: Dataset, names: Sequence[str]) -> dict[str, list[list[str]]]:
    """Tokenised references of the images named, in that order."""
    return {name: [tokenize(caption) for caption in dataset.captions[name]] for name in names}


def bigrams_of(dataset: Dataset, *, apart_from: str) -> Bigrams | None:
    """Bigrams that people say, from the training captions; None if there are none, or if that is the split to score."""
    names = dataset.splits.get("train", ()) if apart_from != "train" else ()
    return Bigrams(tokenize(text) for name in names for text in dataset.captions[name]) if names else None


@dataclass(frozen=True)
class Scores:
    """Scores of one set of captions. All are in percent but `mean_length` (words) and `vocabulary_used` (count).

    Attributes:
        distinct_1, distinct_2: different uni- and bigrams among all of them (Li et al. 2016).
        repeated_trigram_share: captions in which a trigram occurs twice.
        dangling_ending_share: captions whose last word is an article, a preposition or a conjunction.
        implausible_bigram_share: captions with a pair of words that nobody says, see `caplet_export.bigrams`; None
            where it is not known what people say.
    """

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider_d: float
    distinct_1: float
    distinct_2: float
    mean_length: float
    vocabulary_used: int
    repeated_trigram_share: float
    dangling_ending_share: float
    implausible_bigram_share: float | None = None


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval, in percent or percentage points."""

    value: float
    low: float
    high: float


def corpus_scores(
    hypotheses: Hypotheses,
    references: References,
    bigrams: Bigrams | None = None,
    statistics: ImageStatistics | None = None,
) -> Scores:
    """Score captions of a whole split.

    Args:
        hypotheses: a tokenised caption of each image.
        references: tokenised captions of exactly these images, from which CIDEr-D takes its document frequencies.
        bigrams: those of captions by people, of other images; None if they are not known.
        statistics: those of these hypotheses and references, if they have been computed already.

    Raises:
        ValueError: the two do not name the same images, there are none, or an image has no reference.
    """
    statistics = statistics or ImageStatistics.of(hypotheses, references)
    figures: dict[str, Any] = {**statistics.scores(), **_diversity(list(hypotheses.values()))}
    if bigrams is not None:
        odd = sum(bool(bigrams.implausible(words)) for words in hypotheses.values())
        figures["implausible_bigram_share"] = 100 * odd / len(hypotheses)
    return Scores(**figures)


class CiderD:
    """CIDEr-D against fixed references: document frequencies and reference vectors are computed once, so that single
    hypotheses are scored quickly, as the reward of self-critical training must be.

    Scores are coco-caption's per-image ones, from 0 to 10; the CIDEr-D of a split in percent is 100 times their mean.

    Raises:
        ValueError: there are no references, or an image has none.
    """

    def __init__(self, references: References, *, with_end: bool = False) -> None:
        """Take the document frequencies from the references, one document an image, as coco-caption does.

        With `with_end`, `END_TOKEN` is appended to every reference and counts as a word. Hypotheses are then passed as
        they were sampled, with `END_TOKEN` last if they ended and without it if they were cut off, so that the reward
        teaches to end.
        """
        if with_end:
            references = {key: [[*words, END_TOKEN] for words in captions] for key, captions in references.items()}
        document_frequency: Counter[_Gram] = Counter()
        for captions in references.values():
            document_frequency.update({gram for words in captions for gram in _count_grams(words)})
        self._log_documents = math.log(len(references))
        self._idf = {gram: self._log_documents - math.log(count) for gram, count in document_frequency.items()}
        self._images = {key: self._cook(captions) for key, captions in references.items()}

    def score(self, key: str, words: Words) -> float:
        """CIDEr-D of one hypothesis, from 0 to 10. Raises a KeyError for an image without references."""
        image = self._images[key]
        penalties = [_length_penalty(abs(len(words) - other)) for other in image.lengths]
        squares = [0.0] * ORDERS
        products = [0.0] * ORDERS
        idf_of, postings_of = self._idf.get, image.postings.get
        for gram, count in _count_grams(words).items():
            level = len(gram) - 1
            # An n-gram of no reference counts as if one image had it (document frequency 1).
            idf = idf_of(gram, self._log_documents)
            weight = count * idf
            squares[level] += weight * weight
            for caption, other_count in postings_of(gram, ()):
                other = other_count * idf
                # Clipping at the reference's weight is CIDEr-D's answer to captions that repeat what scores.
                products[level] += min(weight, other) * other * image.inverse_norms[caption][level] * penalties[caption]
        cosines = sum(product / math.sqrt(square) for product, square in zip(products, squares, strict=True) if square)
        return 10.0 * cosines / (ORDERS * len(image.lengths))

    def score_many(self, keys: Sequence[str], hypotheses: Sequence[Words]) -> NDArray[np.float64]:
        """CIDEr-D of hypotheses[i] against the references of keys[i], float64 [len(keys)]; a key may occur twice."""
        return np.array([self.score(key, words) for key, words in zip(keys, hypotheses, strict=True)], np.float64)

    def _cook(self, captions: Sequence[Words]) -> _CookedImage:
        if not captions:
            raise ValueError("CIDEr-D needs at least one reference for every image")
        postings: dict[_Gram, tuple[tuple[int, int], ...]] = {}
        inverse_norms: list[tuple[float, ...]] = []
        for index, words in enumerate(captions):
            squares = [0.0] * ORDERS
            for gram, count in _count_grams(words).items():
                squares[len(gram) - 1] += (count * self._idf[gram]) ** 2
                postings[gram] = (*postings.get(gram, ()), (index, count))
            inverse_norms.append(tuple(1 / math.sqrt(square) if square else 0.0 for square in squares))
        return _CookedImage(postings, tuple(inverse_norms), tuple(map(len, captions)))


@cache
def _length_penalty(difference: int) -> float:
    return math.exp(-(difference**2) / (2 * SIGMA**2))


@dataclass(frozen=True)
class _CookedImage:
    """References of one image: where each n-gram occurs (caption, count), and each caption's 1/norm and length."""

    postings: Mapping[_Gram, tuple[tuple[int, int], ...]]
    inverse_norms: tuple[tuple[float, ...], ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class ImageStatistics:
    """Figures of each image from which corpus scores are computed, so that resampling images costs one matrix product.

    Attributes:
        keys: the images, in the order of the arrays.
        bleu: float64 [N,10]: lengths of the caption and the closest reference, n-grams, matched n-grams (n = 1..4).
        rouge_l, cider_d: float64 [N], in coco-caption's own scale.
    """

    keys: tuple[str, ...]
    bleu: NDArray[np.float64]
    rouge_l: NDArray[np.float64]
    cider_d: NDArray[np.float64]

    @classmethod
    def of(cls, hypotheses: Hypotheses, references: References) -> ImageStatistics:
        """Compare every hypothesis with its references. Arguments and errors are those of `corpus_scores`."""
        if hypotheses.keys() != references.keys():
            odd = sorted(hypotheses.keys() ^ references.keys())
            raise ValueError(
                f"hypotheses and references name different images; in only one: {len(odd)}, first {odd[0]!r}"
            )
        if not hypotheses:
            raise ValueError("no image to score")
        keys = tuple(hypotheses)
        cider = CiderD(references)
        return cls(
            keys,
            np.array([_bleu_statistics(hypotheses[key], references[key]) for key in keys], np.float64),
            np.array([rouge_l(hypotheses[key], references[key]) for key in keys], np.float64),
            cider.score_many(keys, list(hypotheses.values())),
        )

    def scores(self) -> dict[str, float]:
        """The corpus scores, named as in `METRICS`, in percent."""
        values = self._weighted(np.ones((1, len(self.keys))))[0]
        return dict(zip(METRICS, values.tolist(), strict=True))

    def resampled(self, resamples: int, seed: int) -> NDArray[np.float64]:
        """Corpus scores of bootstrap samples of the images (drawn with replacement), float64 [resamples, 6], percent.

        Equal seeds draw equal samples, so two systems on the same images can be compared pair by pair.
        """
        count = len(self.keys)
        weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        return self._weighted(weights.astype(np.float64))

    def _weighted(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        means = weights @ np.stack([self.rouge_l, self.cider_d], axis=1) / len(self.keys)
        return 100.0 * np.concatenate([_bleu(weights @ self.bleu), means], axis=1)


def human_scores(references: References) -> dict[str, float] | None:
    """What people score: each caption against the others of its image, in percent, by metric.

    The mean of the scores of first captions, second captions and so on, as many as every image has; None if an image
    has only one.
    """
    return _leave_one_out(references, lambda number: {name: texts[number] for name, texts in references.items()})


def leave_one_out_scores(hypotheses: Hypotheses, references: References) -> dict[str, float] | None:
    """Scores in percent, by metric, against one reference fewer: the mean, with each left out in turn.

    BLEU and ROUGE-L rise with every reference, so that scores against all of them cannot be compared with those of
    people (`human_scores`), who have one fewer. None if an image has only one.
    """
    return _leave_one_out(references, lambda _: hypotheses)


def _leave_one_out(references: References, spoken: Callable[[int], Hypotheses]) -> dict[str, float] | None:
    captions = min(map(len, references.values()))
    if captions < 2:
        return None
    rounds = []
    for number in range(captions):
        others = {name: [*texts[:number], *texts[number + 1 :]] for name, texts in references.items()}
        rounds.append(ImageStatistics.of(spoken(number), others).scores())
    return {metric: sum(scores[metric] for scores in rounds) / captions for metric in METRICS}


def bootstrap_interval(statistics: ImageStatistics, *, resamples: int = _RESAMPLES) -> dict[str, Interval]:
    """95% percentile bootstrap intervals, over images, of every metric in `METRICS`, in percent (Koehn 2004).

    CIDEr-D's document frequencies are those of the whole split in every sample, as when the split is scored once.
    """
    return _intervals(statistics.scores(), statistics.resampled(resamples, _SEED))


def paired_bootstrap(first: ImageStatistics, second: ImageStatistics) -> dict[str, Interval]:
    """95% bootstrap intervals of the difference second - first, both on the same samples of the same images, in
    percentage points. Where 0 is not in the interval, the choice of images does not explain the difference.

    Raises:
        ValueError: the two were not computed on the same images in the same order.
    """
    if first.keys != second.keys:
        raise ValueError("a paired comparison needs the same images in the same order")
    before, after = first.scores(), second.scores()
    samples = second.resampled(_RESAMPLES, _SEED) - first.resampled(_RESAMPLES, _SEED)
    return _intervals({name: after[name] - before[name] for name in METRICS}, samples)


def _intervals(values: Mapping[str, float], samples: NDArray[np.float64]) -> dict[str, Interval]:
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    return {name: Interval(values[name], float(low[i]), float(high[i])) for i, name in enumerate(METRICS)}


def _count_grams(words: Words) -> Counter[_Gram]:
    """How often each n-gram occurs."""
    orders = range(1, ORDERS + 1)
    return Counter(chain.from_iterable(zip(*(words[i:] for i in range(n)), strict=False) for n in orders))


def _bleu_statistics(words: Words, references: Sequence[Words]) -> list[int]:
    """Length, length of the closest reference (the shorter one of two), n-grams and clipped matches for n = 1..4."""
    clip: Counter[_Gram] = Counter()
    for reference in references:
        clip |= _count_grams(reference)
    matched = [0] * ORDERS
    for gram, count in _count_grams(words).items():
        matched[len(gram) - 1] += min(count, clip[gram])
    closest = min((abs(len(reference) - len(words)), len(reference)) for reference in references)[1]
    return [len(words), closest, *(max(len(words) - k, 0) for k in range(ORDERS)), *matched]


def _bleu(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """BLEU-1..4 from summed statistics [..., 10], as fractions [..., 4], with coco-caption's guards against 0/0."""
    small, tiny = 1e-9, 1e-15
    length, closest = totals[..., 0], totals[..., 1]
    guessed, matched = np.split(totals[..., 2:], 2, axis=-1)
    log_precisions = np.log((matched + tiny) / (guessed + small))
    geometric_means = np.exp(np.cumsum(log_precisions, axis=-1) / np.arange(1, ORDERS + 1))
    ratio = (length + tiny) / (closest + small)
    brevity_penalty = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return np.asarray(geometric_means * brevity_penalty[..., None])


def rouge_l(words: Words, references: Sequence[Words]) -> float:
    """ROUGE-L of one hypothesis, from 0 to 1, as coco-caption computes it: best precision and best recall over the
    references, then F-beta.
    """
    # An empty caption counts as one empty word there.
    words = words or [""]
    common = [(_common_subsequence(words, reference or [""]), len(reference or [""])) for reference in references]
    precision = max(length for length, _ in common) / len(words)
    recall = max(length / reference_length for length, reference_length in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_subsequence(first: Words, second: Words) -> int:
    """Length of the longest common subsequence, a row of the usual table in the bits of a number (Hyyrö, 2004)."""
    positions: dict[str, int] = {}
    for position, word in enumerate(second):
        positions[word] = positions.get(word, 0) | 1 << position
    everywhere = (1 << len(second)) - 1
    row = everywhere
    for word in first:
        match = row & positions.get(word, 0)
        row = (row + match) | (row - match)
    return len(second) - (row & everywhere).bit_count()


_DANGLING = frozenset(["a", "an", "the"])
# Prepositions but for those that end captions as adverbs: "looks up", "walks by", "trees behind", "one inside".
_DANGLING |= {"of", "at", "with", "from", "to", "into", "onto", "for", "in", "on", "as", "towards", "toward", "between"}
_DANGLING |= {"among", "against", "beside", "during", "upon", "without", "under", "near", "along", "across", "beneath"}
_DANGLING |= {"and", "or", "but", "nor", "while", "because", "that", "than", "if", "when", "where", "whose", "which"}


def _diversity(captions: Sequence[Words]) -> dict[str, Any]:
    words = [word for caption in captions for word in caption]
    bigrams = [pair for caption in captions for pair in pairwise(caption)]
    trigrams = [list(zip(caption, caption[1:], caption[2:], strict=False)) for caption in captions]
    return {
        "distinct_1": 100 * len(set(words)) / max(len(words), 1),
        "distinct_2": 100 * len(set(bigrams)) / max(len(bigrams), 1),
        "mean_length": len(words) / len(captions),
        "vocabulary_used": len(set(words)),
        "repeated_trigram_share": 100 * sum(len(set(grams)) < len(grams) for grams in trigrams) / len(captions),
        "dangling_ending_share": 100 * sum(c[-1] in _DANGLING for c in captions if c) / len(captions),
    }
