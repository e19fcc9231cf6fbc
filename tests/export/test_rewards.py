"""Rewards on the accelerator are those of the scorer, word by word."""

from __future__ import annotations

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caplet_export.bigrams import Bigrams
from caplet_export.metrics import CiderD, rouge_l
from caplet_export.rewards import CaptionReward
from caplet_export.text import END, END_TOKEN, PAD, SPECIALS, START_TOKEN, Vocabulary

WORDS = ["a", "dog", "runs", "on", "the", "beach", "two", "men", "sit", "red", "ball", "with", "in", "of", "jump"]
VOCABULARY = Vocabulary([*SPECIALS, *WORDS])
GROUP, LENGTH = 6, 9


@pytest.fixture(scope="module")
def references() -> dict[str, list[list[str]]]:
    """Of forty photos, two to five each, some with words that the vocabulary lacks, some without a word."""
    random = np.random.default_rng(1)
    known = [*WORDS, "zebra", "xylophone"]
    weights = 1 / np.arange(1, len(known) + 1)
    return {
        f"{photo}.jpg": [
            list(random.choice(known, random.integers(1, 14), p=weights / weights.sum()))
            for _ in range(random.integers(2, 6))
        ]
        + [[]] * (photo % 5 == 0)
        for photo in range(40)
    }


@pytest.fixture(scope="module")
def bigrams(references: dict[str, list[list[str]]]) -> Bigrams:
    return Bigrams(words for said in references.values() for words in said for _ in range(3))


def draw_ids(count: int) -> np.ndarray:
    """Captions of all lengths, empty and cut ones among them, that repeat themselves a lot."""
    random = np.random.default_rng(2)
    ids = np.full((count, LENGTH + 1), PAD, np.int32)
    for row in ids:
        length = random.integers(0, LENGTH + 2)
        row[:length] = random.choice([4, 5, 6, 7, 8, 9, 14], length)
        if length <= LENGTH and random.random() < 0.8:
            row[length] = END
    return ids


def test_equal_to_the_scorer(references: dict[str, list[list[str]]], bigrams: Bigrams) -> None:
    reward = CaptionReward(VOCABULARY, references, bigrams, rouge=2.0, penalty=0.5)
    rows = np.random.default_rng(3).permutation(40)
    ids = draw_ids(40 * GROUP)
    cider, rouge, pairs = jax.jit(reward)(reward.tables, rows, ids)
    total = np.asarray(reward.total(reward.tables, jnp.asarray(rows), jnp.asarray(ids)))
    scorer = CiderD(references, with_end=True)
    names = list(references)
    seen = set()
    for index, row in enumerate(ids.tolist()):
        name, words, ended = names[rows[index // GROUP]], VOCABULARY.decode(row), END in row
        expected = (
            scorer.score(name, [*words, END_TOKEN] if ended else words),
            rouge_l(words, references[name]),
            len(bigrams.implausible(words, ended=ended)),
        )
        np.testing.assert_allclose((cider[index], rouge[index], pairs[index]), expected, atol=2e-5)
        assert total[index] == pytest.approx(expected[0] + 2 * expected[1] - 0.5 * expected[2], abs=1e-4)
        seen.add((expected[0] > 0, ended, expected[2] > 0))
    assert len(seen) >= 6  # captions with and without each


def test_a_long_caption_costs_no_more_than_its_length(bigrams: Bigrams) -> None:
    """Not its square, for each photo: one caption of a thousand words would take minutes before the first step."""
    long = list(np.random.default_rng(4).choice(WORDS, 2000))
    references = {"a.jpg": [long, WORDS[:6]], "b.jpg": [WORDS[3:9]]}
    tracemalloc.start()
    reward = CaptionReward(VOCABULARY, references, bigrams, rouge=0.0, penalty=0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1000 * len(long), "its square is of four million pairs, for each length of n-grams"
    ids = draw_ids(GROUP)
    found, *_ = jax.jit(reward)(reward.tables, jnp.array([0]), jnp.asarray(ids))
    scorer = CiderD(references, with_end=True)
    said = [[*VOCABULARY.decode(row), *[END_TOKEN] * (END in row)] for row in ids.tolist()]
    np.testing.assert_allclose(found, [scorer.score("a.jpg", words) for words in said], atol=2e-5)


def test_implausible_pairs_from_both_sides(bigrams: Bigrams) -> None:
    table = bigrams.table([START_TOKEN, *WORDS])
    for first, found in zip((START_TOKEN, *WORDS), table, strict=True):
        before = [] if first == START_TOKEN else [first]
        expected = [(first, word) in bigrams.implausible([*before, word], ended=False) for word in WORDS]
        assert found[1:].tolist() == expected
    assert table.any() and not table.all()
