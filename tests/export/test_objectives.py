"""Objectives of training equal their formulas, written out in numpy, with their gradients checked by differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from caplet_export import objectives
from caplet_export.text import END, NEVER_SAID, PAD

GROUP, VOCABULARY = 3, 7
IDS = np.array(
    [[4, 5, END, PAD], [6, END, PAD, PAD], [4, 4, 4, PAD], [5, 6, 4, END], [END, PAD, PAD, PAD], [6, 5, END, PAD]],
    np.int32,
)
WORDS = IDS != PAD
RANDOM = np.random.default_rng(3)
LOGITS, TEACHERS = RANDOM.normal(scale=2, size=(2, *IDS.shape, VOCABULARY)).astype(np.float32)
REWARDS = RANDOM.uniform(0, 3, (len(IDS) // GROUP, GROUP)).astype(np.float32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def of_words(values: np.ndarray) -> np.ndarray:
    """Of values of each word of the vocabulary, those of the words of the captions."""
    return np.take_along_axis(values, IDS[..., None].astype(np.int64), -1)[..., 0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    target = (1 - smoothing) * np.eye(VOCABULARY)[IDS] + smoothing / VOCABULARY
    expected = -(target * log_softmax(LOGITS)).sum(axis=-1)
    found = objectives.cross_entropy(LOGITS, IDS, smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(objectives.mean_over_words(found, IDS)) == pytest.approx(expected[WORDS].mean(), rel=1e-5)


def test_the_mean_over_no_words_is_nothing_and_over_one_word_its_own() -> None:
    ids = np.full((2, 3), PAD)
    for words in range(2):
        ids[0, :words] = END
        assert float(objectives.mean_over_words(np.ones((2, 3), np.float32), ids)) == words


def sampled_by(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of the words, drawn from among those that may be said, and of the cut where one is."""
    allowed = logits.astype(np.float64)
    allowed[..., list(NEVER_SAID)] = -np.inf
    drawn = np.where(WORDS, of_words(log_softmax(allowed)), 0)
    drawn[2, 3] = np.log1p(-np.exp(log_softmax(allowed)[2, 3, END]))  # the third caption goes on beyond the limit
    return drawn


def test_log_probabilities_are_of_what_may_be_said() -> None:
    np.testing.assert_allclose(objectives.log_probabilities(IDS, LOGITS), sampled_by(LOGITS), rtol=1e-5, atol=1e-6)


def test_their_gradient_is_that_of_the_expected_reward() -> None:
    """Of captions of two words at most, all of which are there, and whose logits depend only on the step."""
    words = (4, 5, 6)
    ended = [[END, PAD, PAD], *([a, END, PAD] for a in words), *([a, b, END] for a in words for b in words)]
    ids = np.array([*ended, *([a, b, PAD] for a in words for b in words)], np.int32)
    rewards = np.random.default_rng(4).uniform(0, 3, len(ids)).astype(np.float32)
    steps = tf.Variable(np.random.default_rng(5).normal(size=(3, VOCABULARY)).astype(np.float32))
    with tf.GradientTape(persistent=True) as tape:
        log_probs = tf.reduce_sum(objectives.log_probabilities(ids, tf.repeat(steps[None], len(ids), 0)), axis=1)
        probabilities = tf.exp(log_probs)
        expected = tf.reduce_sum(probabilities * rewards)
        regretted = tf.reduce_sum(tf.stop_gradient(probabilities) * (rewards - 1.5) * log_probs)
    assert float(tf.reduce_sum(probabilities)) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(tape.gradient(regretted, steps), tape.gradient(expected, steps), atol=1e-6)


def regret(logits: np.ndarray) -> float:
    """Each sample's reward less the mean of the other samples', times its log-probability."""
    total = 0.0
    for caption, log_probs in enumerate(sampled_by(logits)):
        image, sample = divmod(caption, GROUP)
        others = np.delete(REWARDS[image].astype(np.float64), sample)
        total -= (REWARDS[image, sample] - others.mean()) * log_probs.sum()
    return float(total / WORDS.sum())


def divergence(logits: np.ndarray) -> float:
    wanted, found = log_softmax(TEACHERS), log_softmax(logits)
    return float((np.exp(wanted) * (wanted - found)).sum(axis=-1)[WORDS].mean())


LOSSES = {
    "self-critical": (
        regret,
        lambda x: objectives.self_critical_loss(objectives.log_probabilities(IDS, x), IDS, REWARDS),
    ),
    "distillation": (divergence, lambda x: objectives.distillation_loss(x, TEACHERS, IDS)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients(name: str) -> None:
    expected, found = LOSSES[name]
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        loss = found(logits)
    gradient = np.asarray(tape.gradient(loss, logits))
    assert float(loss) == pytest.approx(expected(LOGITS), rel=1e-5)
    for _ in range(20):
        direction: Any = RANDOM.normal(size=LOGITS.shape)
        ahead, behind = (expected(LOGITS + step * direction) for step in (1e-5, -1e-5))
        assert (gradient * direction).sum() == pytest.approx((ahead - behind) / 2e-5, rel=1e-3, abs=1e-4)


def test_a_copy_of_its_teacher_has_nothing_to_learn() -> None:
    assert float(objectives.distillation_loss(TEACHERS, TEACHERS, IDS)) == pytest.approx(0, abs=1e-6)
