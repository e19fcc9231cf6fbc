"""Free-running decoding in TensorFlow, in which the model reads its own words."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from caplet_export.model import Captioner, mask_special_tokens
from caplet_export.text import END, PAD, START


class FreeRunner:
    """Greedy captions of a model, whose weights may change between calls."""

    def __init__(self, model: Captioner, max_length: int) -> None:
        self._model = model
        self._max_length = max_length
        self._run = tf.function(self._unroll, reduce_retracing=True, autograph=False)

    def greedy(self, features: Any) -> NDArray[np.int32]:
        """Ids int32 [N,T] of the most likely words for features [N,L,C], padded after `<end>`.

        T is the number of steps of the longest caption, at most max_length+1. A caption that has not ended by then has
        a word too many, which `Vocabulary.decode` cuts off.
        """
        return self.proposals(features, 1)[..., 0]

    def proposals(self, features: Any, count: int) -> NDArray[np.int32]:
        """Ids int32 [N,T,count] of the likeliest words at each step of `greedy`; the first is the one that it takes."""
        ids: NDArray[np.int32] = self._run(features, count).numpy()
        return ids

    def _unroll(self, features: Any, count: int) -> Any:
        features, keys, state = self._model.encode(features)
        start = tf.fill(tf.shape(state)[:1], START)
        size = self._max_length + 1
        written = tf.TensorArray(tf.int32, size, element_shape=(None, count))

        def step(t: Any, token: Any, alive: Any, state: Any, written: Any) -> tuple[Any, ...]:
            logits, state, _ = self._model.step(token, state, features, keys)
            likeliest = tf.where(alive[:, None], tf.math.top_k(mask_special_tokens(logits), count).indices, PAD)
            token = likeliest[:, 0]
            return t + 1, token, alive & (token != END), state, written.write(t, likeliest)

        steps, *_, written = tf.while_loop(
            _any_goes_on,
            step,
            (tf.constant(0), start, tf.ones_like(start, tf.bool), state, written),
            maximum_iterations=size,
        )
        return tf.transpose(written.gather(tf.range(steps)), (1, 0, 2))


def _any_goes_on(t: Any, token: Any, alive: Any, *_: Any) -> Any:
    """Whether any caption goes on: most end at half of the greatest length, and further steps would be wasted."""
    return tf.reduce_any(alive)


def sample(
    model: Captioner, features: Any, max_length: int, group: int, seed: Any, training: bool = False
) -> tuple[Any, Any]:
    """Draw captions from the model, the same ones for the same seed; the logits can be differentiated.

    With `training`, dropout is active, and the gradient of a caption is taken under the same masks that it was drawn
    under.

    Args:
        model: the captioner.
        features: [N,L,C].
        max_length: words at most.
        group: G, captions drawn for each image.
        seed: int64 [2], from which all words are drawn.
        training: whether dropout is active.

    Returns:
        ids int32 [N*G,T], padded after `<end>` (a caption cut at the limit has none), and the model's logits at each
        step, float32 [N*G,T,V], before `mask_special_tokens`; T is the number of steps of the longest caption, at most
        max_length+1.
    """
    features, keys, state = model.encode(features, training)
    state = tf.repeat(state, group, axis=0)
    start = tf.fill(tf.shape(state)[:1], START)
    size = max_length + 1
    ids = tf.TensorArray(tf.int32, size, element_shape=(None,))
    said = tf.TensorArray(tf.float32, size, element_shape=(None, model.config.vocabulary_size))

    def step(t: Any, token: Any, alive: Any, state: Any, ids: Any, said: Any) -> tuple[Any, ...]:
        logits, state, _ = model.step(token, state, features, keys, group, training)
        allowed = tf.stop_gradient(mask_special_tokens(logits))
        here = tf.random.fold_in(seed, tf.cast(t, tf.int64))
        token = tf.random.stateless_categorical(allowed, 1, here, tf.int32)[:, 0]
        token = tf.where(alive & ((t < max_length) | (token == END)), token, PAD)
        return t + 1, token, alive & (token != END), state, ids.write(t, token), said.write(t, logits)

    steps, *_, ids, said = tf.while_loop(
        _any_goes_on,
        step,
        (tf.constant(0), start, tf.ones_like(start, tf.bool), state, ids, said),
        maximum_iterations=size,
    )
    written = tf.range(steps)
    return tf.transpose(ids.gather(written)), tf.transpose(said.gather(written), (1, 0, 2))
