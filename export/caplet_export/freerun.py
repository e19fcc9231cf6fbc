"""Free-running decoding in Keras: what the model says when it reads its own words. Used while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from caplet_export.model import CaptionModel
from caplet_export.text import END, PAD, START, UNKNOWN, Vocabulary

_FORBIDDEN = (PAD, START, UNKNOWN)


def forbid(logits: Any) -> Any:
    """Logits [N,V] in which `<pad>`, `<start>` and `<unk>` cannot win."""
    mask = np.zeros(logits.shape[-1], np.float32)
    mask[list(_FORBIDDEN)] = -1e9
    return logits + mask


class FreeRunner:
    """Greedy or sampled captions of a model.

    The function is traced once; the model's weights may change between calls.
    """

    def __init__(self, model: CaptionModel, max_length: int) -> None:
        self._model = model
        self._max_length = max_length
        self._run = tf.function(self._unroll, reduce_retracing=True)

    def greedy(self, features: Any) -> NDArray[np.int32]:
        """Ids int32 [N,max_length+1] of the most likely words for features [N,L,C]; after `<end>`, padding."""
        return self._run(features, tf.constant(1), tf.constant(False)).numpy()

    def sample(self, features: Any, group: int) -> NDArray[np.int32]:
        """Ids int32 [N*group,max_length+1] drawn from the model, `group` captions an image."""
        return self._run(features, tf.constant(group), tf.constant(True)).numpy()

    def _unroll(self, features: Any, group: Any, draw: Any) -> Any:
        features, keys, state = (tf.repeat(part, group, axis=0) for part in self._model.encode(features))
        token = tf.fill(tf.shape(state)[:1], START)
        alive = tf.ones_like(token, tf.bool)
        written = tf.TensorArray(tf.int32, self._max_length + 1, element_shape=(None,))
        for t in tf.range(self._max_length + 1):
            tf.autograph.experimental.set_loop_options(
                shape_invariants=[(state, tf.TensorShape([None, state.shape[-1]]))]
            )
            logits, state, _ = self._model.step(token, state, features, keys)
            logits = forbid(logits)
            if draw:
                # The Gumbel-max trick: an argmax over perturbed logits is a draw from their softmax.
                noise = -tf.math.log(-tf.math.log(tf.random.uniform(tf.shape(logits), 1e-9, 1.0)))
                logits += noise
            token = tf.where(alive, tf.argmax(logits, -1, tf.int32), PAD)
            written = written.write(t, token)
            alive &= token != END
        return tf.transpose(written.stack())


def captions_of(ids: NDArray[np.int32], vocabulary: Vocabulary, max_length: int) -> list[list[str]]:
    """Words of each row of ids, at most `max_length` of them."""
    return [vocabulary.decode(row)[:max_length] for row in ids.tolist()]


def greedy_captions(
    runner: FreeRunner, batches: Sequence[Any], vocabulary: Vocabulary, max_length: int
) -> list[list[str]]:
    """Greedy captions for batches of features, in order."""
    captions: list[list[str]] = []
    for features in batches:
        captions += captions_of(runner.greedy(features), vocabulary, max_length)
    return captions
