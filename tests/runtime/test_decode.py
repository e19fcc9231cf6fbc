"""The search for sentences, compared with enumeration of all sentences and with a search in plain lists."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caplet.decode import END, START, Encoded, Hypothesis, StepResult, search
from caplet.errors import InferenceError
from caplet.manifest import Decoding
from tiny_bundle import TinyModel, reference_search

WORDS = (4, 5, 6)
TOKENS = (END, *WORDS)


class TableDecoder:
    """Random probabilities for every history of every photo; the history travels in the state, as in a real decoder.

    The features hold the photo's number, so that mixed-up rows are noticed.
    """

    def __init__(self, seed: int, tokens: tuple[int, ...] = TOKENS) -> None:
        self.seed, self.tokens = seed, tokens
        self.calls: list[int] = []  # the number of rows in each call

    def log_probs(self, photo: int, history: int) -> np.ndarray[Any, Any]:
        logits = np.random.default_rng((self.seed, photo, history)).normal(0, 1.5, len(self.tokens))
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    def attention(self, photo: int, history: int) -> np.ndarray[Any, Any]:
        return np.random.default_rng((photo, history)).dirichlet(np.ones(64)).astype(np.float32)

    def encoded(self, photos: int) -> Encoded:
        numbers = np.arange(photos, dtype=np.float64)
        state = np.stack([numbers, np.zeros(photos)], axis=1)
        return Encoded(np.tile(numbers[:, None, None], (1, 64, 1)), np.tile(numbers[:, None, None], (1, 64, 2)), state)

    def __call__(self, token: Any, state: Any, features: Any, keys: Any) -> StepResult:
        self.calls.append(len(token))
        assert token.dtype == np.int64
        np.testing.assert_array_equal(features[:, 0, 0], state[:, 0])
        np.testing.assert_array_equal(keys[:, 63, 1], state[:, 0])
        histories = [next_history(int(history), int(last)) for history, last in zip(state[:, 1], token, strict=True)]
        rows = list(zip(state[:, 0].astype(int).tolist(), histories, strict=True))
        log_probs = np.array([self.log_probs(*row) for row in rows])
        order = np.argsort(-log_probs, axis=1, kind="stable")
        return StepResult(
            np.take_along_axis(log_probs, order, axis=1),
            np.array(self.tokens)[order],
            np.stack([state[:, 0], np.array(histories, float)], axis=1),
            np.array([self.attention(*row) for row in rows]),
        )


def next_history(history: int, token: int) -> int:
    return history * 8 + token


def has_repeated_trigram(words: tuple[int, ...]) -> bool:
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) < len(trigrams)


def says_again(words: tuple[int, ...], repeatable: tuple[tuple[int, ...], ...] | None) -> bool:
    """Whether a word or a pair of words that may be said only once is said twice."""
    if repeatable is None:
        return False
    ngrams = [*zip(words, strict=True), *itertools.pairwise(words)]
    return any(ngrams.count(ngram) > 1 and ngram not in repeatable for ngram in ngrams)


def is_blocked(words: tuple[int, ...], decoding: Decoding) -> bool:
    return (decoding.block_repeated_trigrams and has_repeated_trigram(words)) or says_again(words, decoding.repeatable)


def all_sentences(decoder: TableDecoder, photo: int, decoding: Decoding) -> list[tuple[float, tuple[int, ...]]]:
    """Every sentence the decoder can say with its score, best first, by enumeration."""

    def extend(
        words: tuple[int, ...], total: float, history: int, last: int
    ) -> Iterator[tuple[float, tuple[int, ...]]]:
        history = next_history(history, last)
        length = len(words) + 1
        for token, log_prob in zip(decoder.tokens, decoder.log_probs(photo, history).tolist(), strict=True):
            if token == END:
                yield (total + log_prob) / length**decoding.length_penalty, words
            elif is_blocked((*words, token), decoding):
                continue
            elif length == decoding.max_length:
                yield (total + log_prob) / length**decoding.length_penalty, (*words, token)
            else:
                yield from extend((*words, token), total + log_prob, history, token)

    return sorted(extend((), 0.0, 0, START), key=lambda sentence: -sentence[0])


def decoding(
    beam_size: int = 3,
    max_length: int = 5,
    length_penalty: float = 1.0,
    block: bool = True,
    repeatable: tuple[tuple[int, ...], ...] | None = None,
) -> Decoding:
    return Decoding(beam_size, max_length, length_penalty, block, repeatable)


SOME_REPEATABLE = ((4,), (5,), (4, 5), (6, 4))
"""4 and 5 may be repeated, and so may the pair 4 5, but not the pairs 4 4, 5 5 and 5 4; 6 may be said only once,
although a pair that begins with it may be repeated."""


@pytest.mark.parametrize(
    ("block", "repeatable", "least"),
    [
        (False, None, 300),
        (True, None, 300),
        (True, SOME_REPEATABLE, 100),
        (False, SOME_REPEATABLE, 100),
        (True, (), 10),
    ],
)
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_sentences(
    length_penalty: float, block: bool, repeatable: tuple[tuple[int, ...], ...] | None, least: int
) -> None:
    options = decoding(1000, 5, length_penalty, block, repeatable)
    decoder = TableDecoder(11)
    for photo, found in enumerate(search(decoder, decoder.encoded(3), options)):
        expected = all_sentences(decoder, photo, options)
        assert len(found) == len(expected) > least
        np.testing.assert_allclose([h.score for h in found], [score for score, _ in expected], rtol=1e-6)
        assert found[0].tokens == expected[0][1]
        assert {h.tokens for h in found} == {words for _, words in expected}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), beam_size=st.integers(1, 6), length_penalty=st.sampled_from([0.0, 0.7, 1.0]))
def test_no_beam_beats_the_widest_and_every_score_is_what_the_words_are_worth(
    seed: int, beam_size: int, length_penalty: float
) -> None:
    decoder = TableDecoder(seed)
    options = decoding(beam_size, 4, length_penalty)
    worth = {words: score for score, words in all_sentences(decoder, 0, options)}
    found = search(decoder, decoder.encoded(1), options)[0]
    assert found[0].score <= max(worth.values()) + 1e-6
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert len({h.tokens for h in found}) == len(found) <= beam_size
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(worth[hypothesis.tokens], rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("beam_size", "length_penalty"), [(1, 1.0), (2, 1.0), (3, 0.0), (3, 1.0), (5, 0.7), (9, 1.0)])
def test_search_equals_a_search_in_plain_lists(seed: int, beam_size: int, length_penalty: float) -> None:
    model = TinyModel.random(seed)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 8, 8, 3), np.uint8)
    pixels = np.repeat(np.repeat(pixels, 38, axis=1), 38, axis=2)[:, :299, :299]
    options = decoding(beam_size, 15, length_penalty)
    # One row at a time, as in the reference: products of more rows are rounded differently, and rank nine is close.
    encoded = Encoded(*map(np.concatenate, zip(*(model.encode(photo[None]) for photo in pixels), strict=True)))
    found = search(by_row(numpy_step(model)), encoded, options)
    for photo, hypotheses in zip(pixels, found, strict=True):
        expected = reference_search(model, photo, beam_size=beam_size, max_length=15, length_penalty=length_penalty)
        assert [list(h.tokens) for h in hypotheses] == [words for words, _ in expected]
        np.testing.assert_allclose([h.score for h in hypotheses], [score for _, score in expected], rtol=1e-4)


def numpy_step(model: TinyModel) -> Callable[..., StepResult]:
    return lambda *feeds: StepResult(*model.step(*feeds))


def by_row(step: Callable[..., StepResult]) -> Callable[..., StepResult]:
    def one_by_one(*feeds: np.ndarray) -> StepResult:
        rows = [step(*(feed[row : row + 1] for feed in feeds)) for row in range(len(feeds[0]))]
        return StepResult(*map(np.concatenate, zip(*rows, strict=True)))

    return one_by_one


@pytest.mark.parametrize("seed", range(10))
def test_greedy_is_the_likeliest_word_at_each_step(seed: int) -> None:
    decoder = TableDecoder(seed)
    options = decoding(1, 6, block=False)
    for photo, found in enumerate(search(decoder, decoder.encoded(4), options)):
        words, history, last, total, ended = [], 0, START, 0.0, False
        while not ended and len(words) < 6:
            history = next_history(history, last)
            log_probs = decoder.log_probs(photo, history)
            last = decoder.tokens[int(log_probs.argmax())]
            total += float(log_probs.max())
            ended = last == END
            words += [] if ended else [last]
        assert found[0].tokens == tuple(words)
        assert found[0].ended == ended
        assert found[0].score == pytest.approx(total / (len(words) + ended))
        assert len(found) == 1


def assert_same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    for one, other in itertools.chain.from_iterable(
        zip(*pair, strict=True) for pair in zip(found, expected, strict=True)
    ):
        assert (one.tokens, one.log_probs, one.score, one.ended) == (
            other.tokens,
            other.log_probs,
            other.score,
            other.ended,
        )
        np.testing.assert_array_equal(one.attention, other.attention)


@pytest.mark.parametrize("beam_size", [1, 2, 4])
def test_a_batch_says_what_its_photos_say_alone(beam_size: int) -> None:
    decoder = TableDecoder(3)
    options = decoding(beam_size, 8)
    together = search(decoder, decoder.encoded(6), options)
    encoded = decoder.encoded(6)
    alone = [search(decoder, Encoded(*(part[i : i + 1] for part in encoded)), options)[0] for i in range(6)]
    assert_same(together, alone)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_words_carry_their_own_attention_and_probability(beam_size: int) -> None:
    decoder = TableDecoder(5)
    for photo, found in enumerate(search(decoder, decoder.encoded(3), decoding(beam_size, 6))):
        for hypothesis in found:
            assert hypothesis.attention.shape == (len(hypothesis.tokens), 64)
            assert hypothesis.attention.dtype == np.float32
            history, last = 0, START
            for word, log_prob, attention in zip(
                hypothesis.tokens, hypothesis.log_probs, hypothesis.attention, strict=True
            ):
                history = next_history(history, last)
                np.testing.assert_array_equal(attention, decoder.attention(photo, history))
                assert log_prob == pytest.approx(decoder.log_probs(photo, history)[decoder.tokens.index(word)])
                last = word


@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_no_three_words_in_a_row_are_said_twice(beam_size: int) -> None:
    repeated = 0
    for seed in range(60):
        decoder = TableDecoder(seed, (END, 4, 5))
        free = search(decoder, decoder.encoded(1), decoding(beam_size, 20, block=False))[0]
        blocked = search(decoder, decoder.encoded(1), decoding(beam_size, 20, block=True))[0]
        repeated += any(has_repeated_trigram(h.tokens) for h in free)
        assert not any(has_repeated_trigram(h.tokens) for h in blocked)
    assert repeated > 3  # something was there to block


@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_words_and_pairs_are_said_twice_only_if_they_may_be(beam_size: int) -> None:
    again, may = 0, 0
    for seed in range(60):
        decoder = TableDecoder(seed, (END, *WORDS))
        free = search(decoder, decoder.encoded(1), decoding(beam_size, 20))[0]
        once = search(decoder, decoder.encoded(1), decoding(beam_size, 20, repeatable=SOME_REPEATABLE))[0]
        again += any(says_again(h.tokens, SOME_REPEATABLE) for h in free)
        may += any(h.tokens.count(4) > 1 and says_again(h.tokens, ()) for h in once)
        assert not any(says_again(h.tokens, SOME_REPEATABLE) for h in once)
    assert again > 10  # something was there to forbid
    assert may > 3  # and what may be repeated was


class Chant:
    """A decoder that wants to say the same word for ever."""

    def __init__(self, tokens: tuple[int, ...], log_probs: tuple[float, ...]) -> None:
        self.tokens, self.log_probs = np.array([tokens]), np.array([log_probs], np.float32)
        self.rows: list[int] = []
        self.fed: list[tuple[Any, Any]] = []  # features and keys of each call

    def __call__(self, token: Any, state: Any, features: Any, keys: Any) -> StepResult:
        n = len(token)
        self.rows.append(n)
        self.fed.append((features, keys))
        attention = np.full((n, 64), 1 / 64, np.float32)
        return StepResult(np.repeat(self.log_probs, n, 0), np.repeat(self.tokens, n, 0), state, attention)


ONE_PHOTO = Encoded(np.zeros((1, 64, 2), np.float32), np.zeros((1, 64, 2), np.float32), np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("beam_size", [1, 2])
def test_a_sentence_stops_where_every_continuation_is_blocked(beam_size: int) -> None:
    found = search(Chant((4,), (-0.5,)), ONE_PHOTO, decoding(beam_size, 20))[0]
    assert [h.tokens for h in found] == [(4, 4, 4)]
    assert not found[0].ended
    assert found[0].score == pytest.approx(-0.5)


@pytest.mark.parametrize("beam_size", [1, 2])
def test_impossible_words_are_never_said(beam_size: int) -> None:
    found = search(Chant((4, 5), (-np.inf, -1.0)), ONE_PHOTO, decoding(beam_size, 2))[0]
    assert [h.tokens for h in found] == [(5, 5)]


@pytest.mark.parametrize("beam_size", [1, 2])
@pytest.mark.parametrize("token", [-1, -(2**63), 2**63 - 1])
def test_ids_outside_the_vocabulary_are_found_like_any_word(beam_size: int, token: int) -> None:
    found = search(Chant((token, 4), (-0.1, -1.0)), ONE_PHOTO, decoding(beam_size, 2, repeatable=()))[0]
    assert found[0].tokens == (token, 4)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("log_prob", [np.nan, -np.inf, np.inf])
def test_a_decoder_that_gives_no_number_is_an_error(beam_size: int, log_prob: float) -> None:
    with pytest.raises(InferenceError, match=r"^decoder: gives no usable probabilities; run `caplet check`$"):
        search(Chant((4, 5), (log_prob, log_prob)), ONE_PHOTO, decoding(beam_size))


@pytest.mark.parametrize("beam_size", [1, 3])
def test_the_length_limit_counts_words(beam_size: int) -> None:
    chant = Chant((4, 5, END), (-0.1, -3.0, -9.0))
    found = search(chant, ONE_PHOTO, decoding(beam_size, 7, block=False))[0]
    assert found[0].tokens == (4,) * 7
    assert len(chant.rows) == 7


class HalfAreDone(TableDecoder):
    """As `TableDecoder`, but of every second photo nothing can be said."""

    def log_probs(self, photo: int, history: int) -> np.ndarray[Any, Any]:
        nothing = np.where(np.array(self.tokens) == END, 0.0, -np.inf).astype(np.float32)
        return super().log_probs(photo, history) if photo % 2 else nothing


def test_photos_that_end_as_the_beam_widens_leave_the_others_their_features() -> None:
    """Four rows of four photos become four rows of two, which the decoder notices."""
    decoder = HalfAreDone(3)
    decoding = Decoding(beam_size=2, max_length=4, length_penalty=1.0, block_repeated_trigrams=False)
    found = search(decoder, decoder.encoded(4), decoding)
    assert decoder.calls[:2] == [4, 4]
    assert [len(hypotheses[0].tokens) == 0 for hypotheses in found] == [True, False, True, False]


def test_the_end_token_counts_in_the_score_but_is_not_a_word() -> None:
    found = search(Chant((END, 4), (-0.25, -2.0)), ONE_PHOTO, decoding(1))[0]
    assert (found[0].tokens, found[0].log_probs, found[0].score, found[0].ended) == ((), (), -0.25, True)
    assert (found[0].attention.shape, found[0].attention.dtype) == ((0, 64), np.float32)


@pytest.mark.parametrize("beam_size", [1, 2, 4])
def test_all_photos_and_all_hypotheses_go_through_one_call_per_step(beam_size: int) -> None:
    decoder = TableDecoder(1)
    search(decoder, decoder.encoded(5), decoding(beam_size, 6))
    assert decoder.calls[0] == 5
    assert len(decoder.calls) <= 6
    assert max(decoder.calls) <= 5 * beam_size


@pytest.mark.parametrize(("beam_size", "copies"), [(1, 0), (3, 1)])
def test_features_are_copied_only_where_the_rows_are_of_other_photos_than_before(beam_size: int, copies: int) -> None:
    """Those of a photo are larger than all else that a step takes."""
    chant = Chant((4, 5, 6), (-1.0, -1.1, -1.2))
    search(chant, ONE_PHOTO, decoding(beam_size, 5))
    assert len(chant.fed) == 5
    assert len({id(features) for features, _ in chant.fed}) == len({id(keys) for _, keys in chant.fed}) == 1 + copies


def test_finished_photos_leave_the_batch() -> None:
    decoder = TableDecoder(7)
    search(decoder, decoder.encoded(20), decoding(1, 10))
    assert decoder.calls == sorted(decoder.calls, reverse=True)
    assert decoder.calls[-1] < 20


def test_search_stops_as_soon_as_no_hypothesis_can_still_win() -> None:
    chant = Chant((END, 4), (-0.001, -6.9))
    search(chant, ONE_PHOTO, decoding(1, 10))
    assert len(chant.rows) == 1
    chant.rows.clear()
    # After two steps, two sentences have ended, with -0.001 and -6.901; what goes on has -13.8 and can only lose.
    found = search(chant, ONE_PHOTO, decoding(2, 10, length_penalty=0.0))
    assert [h.tokens for h in found[0]] == [(), (4,)]
    assert len(chant.rows) == 2


@pytest.mark.parametrize("seed", range(30))
def test_stopping_early_changes_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = TableDecoder(seed)
    options = decoding(3, 9, 0.5)
    early = search(decoder, decoder.encoded(2), options)
    early_calls = len(decoder.calls)
    decoder.calls.clear()
    monkeypatch.setattr("caplet.decode._Beam._can_still_win", lambda *_: True)
    assert_same(search(decoder, decoder.encoded(2), options), early)
    assert early_calls <= len(decoder.calls)


@pytest.mark.parametrize("candidates", [4, 16, 40, 200])  # of some numbers, unstable sorts keep the order
@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_of_equally_likely_sentences_the_decoders_first_are_found(beam_size: int, candidates: int) -> None:
    tokens = tuple((np.random.default_rng(1).permutation(candidates) + 4).tolist())
    pairs = Chant(tokens, tuple(-1.0 - place // 2 for place in range(candidates)))
    found = search(pairs, ONE_PHOTO, decoding(beam_size, 2))[0]
    assert [h.tokens for h in found] == [*itertools.product(tokens[:2], repeat=2)][:beam_size]


@pytest.mark.parametrize(("beam_size", "most"), [(1, 40), (3, 72)])
def test_a_step_takes_few_python_calls(beam_size: int, most: int) -> None:
    """Speed without a clock: per word of one photo, the search itself takes no more than microseconds."""
    chant = Chant((4, 5, 6, 7, END), (-0.1, -3.0, -4.0, -5.0, -9.0))
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        search(chant, ONE_PHOTO, decoding(beam_size, 100, block=False))
    finally:
        sys.setprofile(None)
    assert calls / 100 < most
