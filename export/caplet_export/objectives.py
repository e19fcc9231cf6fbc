"""The losses that training minimises, for `train` and `tune` alike, on any Keras backend.

Shapes: N images, G captions of each, T steps, V vocabulary; captions are ids int [...,T], padded after their end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from caplet_export.model import mask_special_tokens
from caplet_export.text import END, PAD

Tensor = Any


def mean_over_words(values: Tensor, ids: Tensor) -> Tensor:
    """Mean of values [...,T] over the words of captions, without paddings; 0 if there are no words."""
    return ops.sum(ops.where(ids != PAD, values, 0.0)) / _number_of_words(ids)


def _number_of_words(ids: Tensor) -> Tensor:
    """Words of captions, without paddings; at least 1."""
    return ops.maximum(ops.sum(ops.cast(ids != PAD, "float32")), 1.0)


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each target, paddings included, float32 [...,T], from logits [...,T,V]. The share `smoothing` of
    the target is spread over all words (label smoothing; Szegedy et al., CVPR 2016).
    """
    losses = ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
    if smoothing:
        uniform = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
        losses = (1 - smoothing) * losses + smoothing * uniform
    return losses


def log_probabilities(ids: Tensor, logits: Tensor) -> Tensor:
    """Log-probability of what was drawn at each step of sampled captions from logits [...,T,V], float32 [...,T].

    At a word it is that of the word; in the last step of a caption that is cut off at the limit, that of not ending
    there; at all other paddings it is 0.
    """
    allowed = mask_special_tokens(logits)
    drawn = ops.where(ids != PAD, -cross_entropy(allowed, ids), 0.0)
    before = ids[..., -2:][..., 0]  # itself, where there is but one step: then nothing is cut
    cut = (ids[..., -1] == PAD) & (before != PAD) & (before != END)
    last, ending = allowed[..., -1, :], np.where(np.arange(logits.shape[-1]) == END, np.float32(-1e9), np.float32(0))
    going_on = ops.logsumexp(last + ending, axis=-1) - ops.logsumexp(last, axis=-1)
    return ops.concatenate([drawn[..., :-1], ops.where(cut, going_on, drawn[..., -1])[..., None]], axis=-1)


def self_critical_loss(log_probs: Tensor, ids: Tensor, rewards: Tensor) -> Tensor:
    """A loss per word whose gradient estimates that of minus the expected reward (Rennie et al., CVPR 2017).

    The baseline of a sample is the mean reward of the other samples of its image (Luo, 2020).

    Args:
        log_probs: [N*G,T], from `log_probabilities`.
        ids: int [N*G,T], an image's samples next to each other.
        rewards: [N,G], G at least 2.
    """
    others = (ops.sum(rewards, axis=1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    advantages = ops.reshape(rewards - others, (-1, 1))
    return -ops.sum(advantages * log_probs) / _number_of_words(ids)  # log_probs has more than words: see there


def distillation_loss(logits: Tensor, teacher_logits: Tensor, ids: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence, over the words of captions, of the distribution of the next word by logits
    [...,T,V] from the teacher's (Hinton et al., 2015).
    """
    wanted = ops.log_softmax(teacher_logits)
    divergence = ops.sum(ops.exp(wanted) * (wanted - ops.log_softmax(logits)), axis=-1)
    return mean_over_words(divergence, ids)
