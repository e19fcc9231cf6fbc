"""Search for captions over the single-step decoder: beam search, for all photos of a batch at once.

Nothing here knows onnxruntime: the decoder is any callable that takes one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from math import isfinite
from operator import attrgetter, itemgetter
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from caplet.errors import RUN_CHECK, InferenceError
from caplet.manifest import Decoding

Floats = NDArray[np.float32]
START, END = 1, 2  # ids that the bundle format fixes
LOCATIONS = 64


class Encoded(NamedTuple):
    """What the encoder makes of N photos: features [N,64,D], keys [N,64,A], first state [N,H], all float32."""

    features: Floats
    keys: Floats
    state: Floats


class StepResult(NamedTuple):
    """One decoder step for N hypotheses.

    `log_probs` float32 [N,K], descending, of the words `tokens` int64 [N,K]; `state` float32 [N,H] to carry on with;
    `attention` float32 [N,64], the weight of each location.
    """

    log_probs: Floats
    tokens: NDArray[np.int64]
    state: Floats
    attention: Floats


Step = Callable[[NDArray[np.int64], Floats, Floats, Floats], StepResult]
"""From the words before, int64 [N], and the state, features and keys of each."""


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A sentence and how likely the model finds it.

    Attributes:
        tokens: ids of the words, without <start> and <end>.
        log_probs: natural logarithm of each word's probability.
        attention: float32 [words,64], where each word looked.
        score: sum of the log-probabilities, that of <end> included if the sentence ended, divided by
            (number of summands) ** length_penalty.
        ended: False for a sentence that was cut at the length limit.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    attention: Floats
    score: float
    ended: bool


def search(step: Step, encoded: Encoded, decoding: Decoding) -> list[list[Hypothesis]]:
    """Find the `decoding.beam_size` best sentences of each photo, best first.

    Of all continuations of a photo's hypotheses the `beam_size` likeliest stay; of these, those that ended are set
    aside and their places go to others in the next step. A photo is finished when no hypothesis is left, or none can
    still get among the best. With a beam of 1 this is greedy search.

    Args:
        step: one decoder step.
        encoded: what the encoder made of N photos.
        decoding: beam size, longest sentence, length penalty, and what may be said twice.

    Returns:
        For each photo 1 to `beam_size` hypotheses.

    Raises:
        InferenceError: the decoder gives no usable probabilities.
    """
    repeats = _Repeats(decoding)
    beams = [_Beam(decoding, repeats) for _ in encoded.state]
    attention: list[Floats] = []  # of each step
    photos = list(range(len(beams)))  # of each row
    features, keys, state = encoded
    token = np.full(len(photos), START, np.int64)
    while photos:
        result = step(token, state, features, keys)
        attention.append(result.attention)
        choices = list(zip(result.tokens.tolist(), result.log_probs.tolist(), strict=True))
        row = 0
        for beam in beams:
            if beam.live:
                end = row + len(beam.live)
                beam.extend(row, choices[row:end])
                row = end
        before, photos = photos, [photo for photo, beam in enumerate(beams) for _ in beam.live]
        if photos != before:
            features, keys = encoded.features[photos], encoded.keys[photos]
        sentences = [sentence for beam in beams for sentence in beam.live]
        state = result.state[[sentence.rows[-1] for sentence in sentences]]
        token = np.array([sentence.words[-1] for sentence in sentences], np.int64)
    if not all(beam.finished for beam in beams):
        raise InferenceError("decoder", "gives no usable probabilities", RUN_CHECK)
    return [beam.best(attention) for beam in beams]


class _Sentence(NamedTuple):
    """A hypothesis as it grows: the sum of its log-probabilities, and each word's id, log-probability and row in its
    step's output.
    """

    total: float
    words: tuple[int, ...]
    log_probs: tuple[float, ...]
    rows: tuple[int, ...]


_Continuation: TypeAlias = tuple[float, _Sentence, int, int, float]
"""The sum of the log-probabilities with the next token's, the sentence before, its row, the token and its
log-probability."""


class _Finished(NamedTuple):
    """A sentence that was set aside."""

    score: float
    sentence: _Sentence
    ended: bool


class _Beam:
    """The hypotheses of one photo, in plain Python: for so few, that costs less than arrays would."""

    def __init__(self, decoding: Decoding, repeats: _Repeats) -> None:
        self._decoding, self._repeats = decoding, repeats
        self.live = [_Sentence(0.0, (), (), ())]
        self.finished: list[_Finished] = []

    def extend(self, first_row: int, choices: Sequence[tuple[list[int], list[float]]]) -> None:
        """Take the decoder's tokens and log-probabilities for each live hypothesis, its rows from `first_row` on.

        None is live afterwards if the photo is finished.
        """
        before, size = self.live, self._decoding.beam_size
        found: list[_Continuation] = []
        for row, (sentence, (tokens, log_probs)) in enumerate(zip(before, choices, strict=True), first_row):
            found += islice(self._continuations(sentence, row, tokens, log_probs), size)
        # A stable sort: equal totals keep the decoder's order, so that the same photo always gives the same words.
        found.sort(key=itemgetter(0), reverse=True)
        self.live = []
        for total, sentence, row, token, log_prob in found[:size]:
            _, words, word_scores, rows = sentence
            if token == END:
                self._finish(total, sentence, ended=True)
            else:
                self.live.append(_Sentence(total, (*words, token), (*word_scores, log_prob), (*rows, row)))
        if not self.live:
            if not self.finished:  # every continuation is blocked: the sentence stops where it stands
                self._cut(before)
        elif len(self.live[0].words) == self._decoding.max_length:
            self._cut(self.live)
            self.live = []
        elif len(self.finished) >= size and not self._can_still_win():
            self.live = []

    def _continuations(
        self, sentence: _Sentence, row: int, tokens: Sequence[int], log_probs: Sequence[float]
    ) -> Iterator[_Continuation]:
        """What may follow, the likeliest first, as the decoder gives it."""
        for token, log_prob in zip(tokens, log_probs, strict=True):
            total = sentence.total + log_prob
            if isfinite(total) and not self._repeats.forbid(token, sentence.words):
                yield total, sentence, row, token, log_prob

    def _cut(self, sentences: Sequence[_Sentence]) -> None:
        """Set sentences aside as they stand; before the first word there are none."""
        for sentence in sentences:
            if sentence.words:
                self._finish(sentence.total, sentence, ended=False)

    def _finish(self, total: float, sentence: _Sentence, *, ended: bool) -> None:
        score = self._score(total, len(sentence.words) + ended)
        self.finished.append(_Finished(score, sentence, ended))

    def _score(self, total: float, tokens: int) -> float:
        return total / float(tokens**self._decoding.length_penalty)

    def _can_still_win(self) -> bool:
        """Whether a live hypothesis may still get among the best; at least a beam of them is finished.

        At best, the likeliest has the same sum at the length limit, where a negative sum is divided by the most words.
        """
        last = sorted(done.score for done in self.finished)[-self._decoding.beam_size]
        return last < self._score(self.live[0].total, self._decoding.max_length)

    def best(self, attention: Sequence[Floats]) -> list[Hypothesis]:
        """The best sentences set aside; `attention` is that of each step."""
        ranked = sorted(self.finished, key=attrgetter("score"), reverse=True)[: self._decoding.beam_size]
        hypotheses = []
        for score, sentence, ended in ranked:
            weights = [rows[row] for rows, row in zip(attention, sentence.rows, strict=False)]
            looked = np.array(weights, np.float32).reshape(-1, LOCATIONS)
            hypotheses.append(Hypothesis(sentence.words, sentence.log_probs, looked, score, ended))
        return hypotheses


class _Repeats:
    """Which words may not come next, because they would say something for the second time."""

    def __init__(self, decoding: Decoding) -> None:
        self._trigrams = decoding.block_repeated_trigrams
        self._repeatable = None if decoding.repeatable is None else frozenset(decoding.repeatable)

    def forbid(self, token: int, words: tuple[int, ...]) -> bool:
        """Whether `token` may not follow `words`."""
        if token not in words:  # then nothing that ends with it has been said
            return False
        if self._repeatable is not None:
            pair = (words[-1], token)
            if (token,) not in self._repeatable or (pair not in self._repeatable and pair in pairwise(words)):
                return True
        said: Iterator[tuple[int, ...]] = zip(words, words[1:], words[2:], strict=False)
        return self._trigrams and (*words[-2:], token) in said
