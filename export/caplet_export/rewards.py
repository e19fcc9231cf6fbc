"""The reward of sampled captions, on the accelerator: thousands of them take less time than a decoding step.

Tests hold its figures to those of `metrics.CiderD.score`, `metrics.rouge_l` and `bigrams.Bigrams`. Words are numbers
here, and n-grams hashes of 32 bits: the chance that an n-gram is taken for another is one in ten thousand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from caplet_export.bigrams import Bigrams
from caplet_export.metrics import BETA, ORDERS, SIGMA, References
from caplet_export.text import END, END_TOKEN, PAD, START, Vocabulary

Array = Any
_MULTIPLIERS = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B)  # of Knuth (1973) and MurmurHash3


class CaptionReward:
    """CIDEr-D with the end token (0 to 10), `rouge` times ROUGE-L, less `penalty` for each implausible pair of words.

    Args:
        vocabulary: of the captions' ids.
        references: tokenised captions of the photos, by name, from which document frequencies are taken.
        bigrams: pairs of words that people say.
        rouge: weight of ROUGE-L.
        penalty: price of a pair of words that nobody says.

    Attributes:
        tables: the arrays that it looks things up in: pass them to jitted functions, lest they become constants.
    """

    def __init__(
        self, vocabulary: Vocabulary, references: References, bigrams: Bigrams, *, rouge: float, penalty: float
    ) -> None:
        self._rouge, self._penalty = rouge, penalty
        numbers: dict[str, int] = {}
        for word in (*vocabulary.words, END_TOKEN, *(w for said in references.values() for ws in said for w in ws)):
            numbers.setdefault(word, len(numbers) + 1)
        most = max(len(said) for said in references.values())
        longest = max(len(words) for said in references.values() for words in said) + 1
        ended = np.zeros((len(references), most, longest), np.uint32)
        for row, said in enumerate(references.values()):
            for column, words in enumerate(said):
                ended[row, column, : len(words) + 1] = [numbers[word] for word in (*words, END_TOKEN)]
        with np.errstate(over="ignore"):
            grams = _grams(ended, np)
        frequencies = np.unique(np.concatenate([np.unique(of_photo) for of_photo in grams]), return_counts=True)
        known, documents = (part[frequencies[0] != 0] for part in frequencies)
        self._unseen = math.log(len(references))
        idf = (self._unseen - np.log(documents)).astype(np.float32)
        place = np.minimum(np.searchsorted(known, grams), len(known) - 1)
        counts = _first_counts(grams)
        weights = (counts * idf[place]).astype(np.float32)
        ids = [numbers[word] for word in vocabulary.words]
        ids[PAD], ids[START], ids[END] = 0, 0, numbers[END_TOKEN]
        self.tables: dict[str, Array] = {
            "words": jnp.asarray(np.array(ids, np.uint32)),
            "grams": jnp.asarray(known),
            "idf": jnp.asarray(idf),
            "reference_words": jnp.asarray(np.where(ended == numbers[END_TOKEN], 0, ended)),
            "reference_grams": jnp.asarray(np.where(counts > 0, grams, 0)),
            "reference_weights": jnp.asarray(weights),
            "reference_lengths": jnp.asarray((ended > 0).sum(-1)),
            "references": jnp.asarray(np.array([len(said) for said in references.values()], np.float32)),
            "implausible": jnp.asarray(bigrams.table(vocabulary.words)),
        }

    def __call__(self, tables: Mapping[str, Array], rows: Array, ids: Array) -> tuple[Array, Array, Array]:
        """CIDEr-D, ROUGE-L and number of implausible pairs, float32 [N*G] each, of captions.

        Args:
            tables: `self.tables`.
            rows: int [N], positions of the photos in `references`.
            ids: int [N*G,T], G captions of each, padded after `<end>`; one that was cut off has no `<end>`.
        """
        group = ids.shape[0] // rows.shape[0]
        of = {name: tables[name][jnp.repeat(rows, group)] for name in tables if name.startswith("reference")}
        words = tables["words"][ids]
        cider = self._cider(tables, of, words)
        rouge = _rouge(of, jnp.where(ids == END, 0, words))
        pairs = jnp.sum(tables["implausible"][words_before(ids), ids] & (ids != PAD), axis=1)
        return cider, rouge, pairs.astype(jnp.float32)

    def total(self, tables: Mapping[str, Array], rows: Array, ids: Array) -> Array:
        """The reward, float32 [N*G]; arguments as of a call."""
        cider, rouge, pairs = self(tables, rows, ids)
        return cider + self._rouge * rouge - self._penalty * pairs

    def _cider(self, tables: Mapping[str, Array], of: Mapping[str, Array], words: Array) -> Array:
        """Vedantam et al., CVPR 2015, as coco-caption has it: clipped tf-idf cosines, a Gaussian of the lengths."""
        grams = _grams(words, jnp)
        alike = grams[..., :, None] == grams[..., None, :]
        earlier = jnp.tril(jnp.ones(alike.shape[-2:], bool), -1)
        first = (jnp.sum(alike & earlier, axis=-1) == 0) & (grams != 0)
        place = jnp.minimum(jnp.searchsorted(tables["grams"], grams), tables["grams"].shape[0] - 1)
        idf = jnp.where(tables["grams"][place] == grams, tables["idf"][place], self._unseen)
        weights = jnp.where(first, jnp.sum(alike, axis=-1) * idf, 0.0)
        theirs = of["reference_weights"]
        same = (grams[:, None, :, :, None] == of["reference_grams"][:, :, :, None, :]) & first[:, None, :, :, None]
        clipped = jnp.minimum(weights[:, None, :, :, None], theirs[:, :, :, None, :]) * theirs[:, :, :, None, :]
        products = jnp.sum(jnp.where(same, clipped, 0.0), axis=(-1, -2))
        norms = jnp.sqrt(jnp.sum(weights**2, axis=-1))[:, None] * jnp.sqrt(jnp.sum(theirs**2, axis=-1))
        cosines = jnp.mean(products / jnp.maximum(norms, 1e-12), axis=-1)
        difference = (jnp.sum(words > 0, axis=-1)[:, None] - of["reference_lengths"]).astype(jnp.float32)
        cosines *= jnp.exp(-(difference**2) / (2 * SIGMA**2))
        return 10.0 * jnp.sum(cosines, axis=1) / of["references"]


def words_before(ids: Array) -> Array:
    """The word that is read when each word of captions int32 [N,T] is said, in the same shape: `<start>` first."""
    return jnp.concatenate([jnp.full_like(ids[:, :1], START), ids[:, :-1]], axis=1)


def _rouge(of: Mapping[str, Array], words: Array) -> Array:
    """Lin and Och, ACL 2004: F of the best precision and the best recall of longest common subsequences."""
    theirs = of["reference_words"]

    def next_row(row: Array, word: Array) -> tuple[Array, None]:
        """The next row of the usual table: the longest subsequence up to each word of the reference."""
        same = (theirs == word[:, None, None]) & (word > 0)[:, None, None]
        longer = jnp.pad(row, ((0, 0), (0, 0), (1, 0)))[..., :-1] + same
        return jax.lax.cummax(jnp.maximum(row, longer), axis=2), None

    last, _ = jax.lax.scan(next_row, jnp.zeros(theirs.shape, jnp.int32), jnp.swapaxes(words, 0, 1))
    common = last[..., -1].astype(jnp.float32)
    precision = jnp.max(common, axis=1) / jnp.maximum(jnp.sum(words > 0, axis=-1), 1)
    recall = jnp.max(common / jnp.maximum(jnp.sum(theirs > 0, axis=-1), 1), axis=1)
    both_empty = jnp.all(words == 0, axis=1) & jnp.any(of["reference_lengths"] == 1, axis=1)  # 1: the end token
    score = (1 + BETA**2) * precision * recall / jnp.maximum(recall + BETA**2 * precision, 1e-9)
    return jnp.where(both_empty, 1.0, score)


def _grams(words: Array, library: Any) -> Array:
    """Hashes uint32 [...,4,T] of the n-grams that begin at each word of [...,T]; 0 where one runs past the end."""
    one, two = _MULTIPLIERS
    hashes, whole, grams = words * one, words > 0, []
    for n in range(ORDERS):
        if n:
            later = library.concatenate([words[..., n:], library.zeros_like(words[..., :n])], -1)
            hashes = (hashes ^ (hashes >> np.uint32(15))) * two + later * one + np.uint32(n)
            whole = whole & (later > 0)
        mixed = hashes ^ (hashes >> np.uint32(13))
        grams.append(library.where(whole, library.where(mixed == 0, np.uint32(1), mixed), np.uint32(0)))
    return library.stack(grams, -2)


def _first_counts(grams: NDArray[np.uint32]) -> NDArray[np.int32]:
    """How often each n-gram of `_grams` occurs in its caption, where it stands for the first time; 0 elsewhere.

    By sorting: a comparison of all pairs would take minutes where a single caption has a thousand words.
    """
    order = np.argsort(grams, axis=-1, kind="stable")
    ordered = np.take_along_axis(grams, order, axis=-1)
    starts = np.flatnonzero(np.diff(ordered, axis=-1, prepend=ordered[..., :1] + np.uint32(1)))
    found = np.zeros(grams.size, np.int32)
    found[starts] = np.diff(starts, append=grams.size)
    counts = np.empty(grams.shape, np.int32)
    np.put_along_axis(counts, order, found.reshape(grams.shape), axis=-1)
    return np.where(grams, counts, 0)
