"""Search for captions over the single-step decoder: greedy, and beam search for all photos of a batch at once.

Nothing here knows onnxruntime: the decoder is any callable that takes one step.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caplet.errors import RUN_CHECK, InferenceError
from caplet.manifest import Decoding

Floats = NDArray[np.float32]
_Ids = NDArray[np.int64]
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
    run = _greedy if decoding.beam_size == 1 else _beam
    found = run(step, encoded, decoding)
    if not all(found):
        raise InferenceError("decoder", "gives no usable probabilities", RUN_CHECK)
    return found


def _score(log_prob: float, tokens: int, decoding: Decoding) -> float:
    return log_prob / float(tokens**decoding.length_penalty)


class _Repeats:
    """Which words may not come next, because they would say something for the second time."""

    def __init__(self, decoding: Decoding) -> None:
        self._trigrams = decoding.block_repeated_trigrams
        self._repeatable = None if decoding.repeatable is None else frozenset(decoding.repeatable)
        # Whether a word may be said twice, by its id; the last place stands for all larger ids.
        ids = [ngram[0] for ngram in self._repeatable or () if len(ngram) == 1]
        self._words = np.zeros(max(ids, default=0) + 2, bool)
        self._words[ids] = True

    def forbid(self, token: int, words: Sequence[int], said: Container[tuple[int, ...]]) -> bool:
        """Whether `token` may not follow `words`; `said` are their n-grams of one to three words."""
        if self._trigrams and (*words[-2:], token) in said:
            return True
        if self._repeatable is None or (token,) not in said:
            return False
        pair = (*words[-1:], token)
        return (token,) not in self._repeatable or (pair in said and pair not in self._repeatable)

    def rule_out(self, words: _Ids, tokens: _Ids, totals: NDArray[np.float64]) -> None:
        """Set `totals` [P,W,K] to minus infinity where `forbid` would forbid `tokens` [P,W,K] after `words` [P,W,t]."""
        said = tokens[..., None] == words[:, :, None]  # [P,W,K,t]: which of the words the token repeats
        if self._repeatable is not None:
            known = self._words.take(tokens, mode="clip")  # ids out of range are for the caller to notice
            totals[said.any(axis=3) & ~known] = -np.inf
        last = words[..., :-1] == words[..., -1:]  # [P,W,t-1]: which earlier words the last one repeats
        if not last.any():
            return
        pairs = said[..., 1:] & last[:, :, None]
        if self._repeatable is not None:
            for photo, place, rank in np.argwhere(pairs.any(axis=3)).tolist():
                pair = int(words[photo, place, -1]), int(tokens[photo, place, rank])
                if pair not in self._repeatable:
                    totals[photo, place, rank] = -np.inf
        if self._trigrams:
            before = words[..., :-2] == words[..., -2:-1]
            totals[(pairs[..., 1:] & before[:, :, None]).any(axis=3)] = -np.inf


class _Sentence:
    """One photo's sentence in greedy search, with the sum of its log-probabilities."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.log_probs: list[float] = []
        self.attention: list[Floats] = []
        self.said: set[tuple[int, ...]] = set()  # single words, and two and three words in a row
        self.total = 0.0

    def add(self, token: int, log_prob: float, attention: Floats) -> None:
        self.words.append(token)
        self.said.update(tuple(self.words[-size:]) for size in (1, 2, 3))
        self.log_probs.append(log_prob)
        self.attention.append(attention)

    def finish(self, decoding: Decoding, *, ended: bool) -> list[Hypothesis]:
        """The sentence as the only result, or none if the decoder gave not even a first word."""
        summands = len(self.words) + ended
        if summands == 0:
            return []
        attention = np.array(self.attention, np.float32).reshape(-1, LOCATIONS)
        score = _score(self.total, summands, decoding)
        return [Hypothesis(tuple(self.words), tuple(self.log_probs), attention, score, ended)]


def _greedy(step: Step, encoded: Encoded, decoding: Decoding) -> list[list[Hypothesis]]:
    """The likeliest word at each step. Plain lists: for one photo that costs less than arrays would."""
    features, keys, state = encoded
    repeats = _Repeats(decoding)
    results: list[list[Hypothesis]] = [[] for _ in state]
    live = [(photo, _Sentence()) for photo in range(len(state))]
    token = np.full(len(state), START, np.int64)
    for _ in range(decoding.max_length):
        result = step(token, state, features, keys)
        going: list[int] = []  # rows that go on
        chosen: list[int] = []
        rows = zip(live, result.tokens.tolist(), result.log_probs.tolist(), strict=True)
        for row, ((photo, sentence), tokens, log_probs) in enumerate(rows):
            best = _likeliest(sentence, tokens, log_probs, repeats)
            if best is None:
                results[photo] = sentence.finish(decoding, ended=False)
                continue
            sentence.total += log_probs[best]
            if tokens[best] == END:
                results[photo] = sentence.finish(decoding, ended=True)
                continue
            sentence.add(tokens[best], log_probs[best], result.attention[row])
            going.append(row)
            chosen.append(tokens[best])
        state = result.state
        if len(going) < len(live):
            live = [live[row] for row in going]
            if not live:
                return results
            state, features, keys = state[going], features[going], keys[going]
        token = np.array(chosen, np.int64)
    for photo, sentence in live:
        results[photo] = sentence.finish(decoding, ended=False)
    return results


def _likeliest(sentence: _Sentence, tokens: Sequence[int], log_probs: Sequence[float], repeats: _Repeats) -> int | None:
    """The rank of the best word that may follow, or None. The decoder gives words in descending order."""
    for rank, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=True)):
        if np.isfinite(log_prob) and not repeats.forbid(token, sentence.words, sentence.said):
            return rank
    return None


@dataclass(frozen=True, eq=False)
class _Finished:
    """A hypothesis that was set aside; `rows` are the places of its attention in each step's output."""

    score: float
    words: _Ids
    log_probs: Floats
    rows: _Ids
    ended: bool


@dataclass(eq=False)
class _Beams:
    """The live hypotheses of P photos, W each, after t steps.

    `total` [P,W] is the sum of the log-probabilities, minus infinity for a place without a hypothesis; `words`,
    `log_probs` and `rows` [P,W,t] are each step's token, its log-probability and its row in the step's output.
    """

    total: NDArray[np.float64]
    words: _Ids
    log_probs: Floats
    rows: _Ids

    @classmethod
    def start(cls, photos: int) -> _Beams:
        nothing = np.empty((photos, 1, 0), np.int64)
        return cls(np.zeros((photos, 1)), nothing, np.empty((photos, 1, 0), np.float32), nothing)

    def expand(self, result: StepResult, beam_size: int, repeats: _Repeats) -> tuple[_Beams, _Ids, _Ids]:
        """The best continuations; also the row [P,W] each comes from and its new token [P,W]."""
        photos, width = self.total.shape
        top = result.tokens.shape[1]
        tokens = result.tokens.reshape(photos, width, top)
        log_probs = result.log_probs.reshape(photos, width, top)
        totals = self.total[:, :, None] + log_probs
        repeats.rule_out(self.words, tokens, totals)
        totals = np.where(np.isfinite(totals), totals, -np.inf).reshape(photos, width * top)
        # A stable sort: equal totals keep the decoder's order, so that the same photo always gives the same words.
        best = np.argsort(-totals, axis=1, kind="stable")[:, :beam_size]
        photo = np.arange(photos)[:, None]
        parent = best // top
        rows = photo * width + parent
        token = tokens.reshape(photos, -1)[photo, best]
        log_prob = log_probs.reshape(photos, -1)[photo, best]
        grown = _Beams(
            totals[photo, best],
            np.concatenate([self.words[photo, parent], token[..., None]], axis=2),
            np.concatenate([self.log_probs[photo, parent], log_prob[..., None]], axis=2),
            np.concatenate([self.rows[photo, parent], rows[..., None]], axis=2),
        )
        return grown, rows, token

    def keep(self, photos: NDArray[Any]) -> None:
        self.total, self.words = self.total[photos], self.words[photos]
        self.log_probs, self.rows = self.log_probs[photos], self.rows[photos]

    def hypothesis(self, photo: int, place: int, decoding: Decoding, *, ended: bool) -> _Finished:
        length = self.words.shape[2]
        words, log_probs, rows = self.words[photo, place], self.log_probs[photo, place], self.rows[photo, place]
        said = length - ended
        score = _score(float(self.total[photo, place]), length, decoding)
        return _Finished(score, words[:said], log_probs[:said], rows[:said], ended)

    def all_live(self, photo: int, decoding: Decoding) -> list[_Finished]:
        """The photo's hypotheses as they stand, for the length limit; none before the first word."""
        places = np.flatnonzero(np.isfinite(self.total[photo])).tolist() if self.words.shape[2] else []
        return [self.hypothesis(photo, place, decoding, ended=False) for place in places]


def _beam(step: Step, encoded: Encoded, decoding: Decoding) -> list[list[Hypothesis]]:
    finished: list[list[_Finished]] = [[] for _ in encoded.state]
    attention: list[Floats] = []
    photos = np.arange(len(finished))  # which photo each place of the arrays below is
    beams, repeats = _Beams.start(len(photos)), _Repeats(decoding)
    features, keys, state = encoded
    token = np.full(len(photos), START, np.int64)
    while len(photos):
        result = step(token, state, features, keys)
        attention.append(result.attention)
        grown, rows, tokens = beams.expand(result, decoding.beam_size, repeats)
        at_limit = len(attention) == decoding.max_length
        done = np.zeros(len(photos), bool)
        for place, photo in enumerate(photos):
            done[place] = _settle(finished[photo], beams, grown, place, tokens[place], decoding, at_limit=at_limit)
        beams = grown
        if done.any():
            beams.keep(~done)
            photos, rows, tokens = photos[~done], rows[~done], tokens[~done]
        state, token = result.state[rows.ravel()], tokens.ravel()
        if done.any() or len(features) != len(token):
            # A photo's hypotheses share its features, so these change only with the photos left and the beam's width.
            features = np.repeat(encoded.features[photos], tokens.shape[1], axis=0)
            keys = np.repeat(encoded.keys[photos], tokens.shape[1], axis=0)
    return [_best(hypotheses, attention, decoding) for hypotheses in finished]


def _settle(
    finished: list[_Finished],
    before: _Beams,
    beams: _Beams,
    place: int,
    tokens: _Ids,
    decoding: Decoding,
    *,
    at_limit: bool,
) -> bool:
    """Set a photo's ended hypotheses aside and say whether the photo is done."""
    totals = beams.total[place]
    for hypothesis in np.flatnonzero(np.isfinite(totals) & (tokens == END)).tolist():
        finished.append(beams.hypothesis(place, hypothesis, decoding, ended=True))
        totals[hypothesis] = -np.inf
    likeliest = float(totals.max())
    if likeliest == -np.inf:
        if not finished:  # every continuation is blocked: the sentence stops where it stands
            finished += before.all_live(place, decoding)
        return True
    if at_limit:
        finished += beams.all_live(place, decoding)
        return True
    return not _can_still_win(likeliest, finished, decoding)


def _can_still_win(total: float, finished: list[_Finished], decoding: Decoding) -> bool:
    """Whether a live hypothesis with this sum of log-probabilities may still get among the best.

    At best, its sum is still `total` at the length limit, where a negative sum is divided by the most words.
    """
    if len(finished) < decoding.beam_size:
        return True
    last = sorted(hypothesis.score for hypothesis in finished)[-decoding.beam_size]
    return last < _score(total, decoding.max_length, decoding)


def _best(finished: list[_Finished], attention: list[Floats], decoding: Decoding) -> list[Hypothesis]:
    ranked = sorted(finished, key=lambda hypothesis: -hypothesis.score)[: decoding.beam_size]
    return [
        Hypothesis(
            tuple(hypothesis.words.tolist()),
            tuple(hypothesis.log_probs.tolist()),
            np.array([attention[i][row] for i, row in enumerate(hypothesis.rows)], np.float32).reshape(-1, LOCATIONS),
            hypothesis.score,
            hypothesis.ended,
        )
        for hypothesis in ranked
    ]
