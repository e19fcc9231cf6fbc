"""The captioner: its shapes, and that stepping, unrolling, grouping and padding all say the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from caplet_export.checkpoint import load_checkpoint
from caplet_export.config import ModelConfig
from caplet_export.model import CaptionModel, build_model, members_of
from caplet_export.objectives import cross_entropy, mean_over_words
from caplet_export.scopes import loaded_later

RELEASED = Path(__file__).parents[2] / "models" / "checkpoints" / "flickr8k-gru"

SMALL = ModelConfig(
    vocabulary_size=11, locations=6, channels=10, feature_size=8, attention_size=5, embedding_size=7, state_size=9
)
VARIANTS = {
    "recipe": SMALL,
    "tutorial": dataclasses.replace(
        SMALL, initial_state="zero", gated_context=False, deep_output=False, tied_embeddings=False, dropout=0.0
    ),
    "untied": dataclasses.replace(SMALL, tied_embeddings=False),
}


@pytest.fixture(params=VARIANTS, scope="module")
def model(request: pytest.FixtureRequest) -> CaptionModel:
    keras.utils.set_random_seed(3)
    model = build_model(VARIANTS[request.param])
    for variable in model.trainable_variables:  # biases start at zero, and would hide what is left out
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.3, seed=5))
    return model


@pytest.fixture
def features() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(2, 6, 10)).astype(np.float32)


TOKENS = np.array([[1, 4, 5, 6], [1, 7, 8, 4], [1, 9, 4, 4], [1, 5, 10, 6]], np.int32)


def as_numpy(*tensors: object) -> list[NDArray[np.float32]]:
    return [keras.ops.convert_to_numpy(tensor) for tensor in tensors]


def read_aloud(
    model: CaptionModel, features: NDArray[np.float32], tokens: NDArray[np.int32], training: bool = False
) -> list[NDArray[np.float32]]:
    """Logits and attention by teacher forcing."""
    encoded = model.encode(features, training)
    return as_numpy(*model.teacher_forced(*encoded, tokens, len(tokens) // len(features), training))


def test_shapes(model: CaptionModel, features: NDArray[np.float32]) -> None:
    encoded, keys, state = model.encode(features)
    assert [tuple(part.shape) for part in (encoded, keys, state)] == [(2, 6, 8), (2, 6, 5), (2, 9)]
    logits, state, attention = model.step(np.array([1, 1]), state, encoded, keys)
    assert [tuple(part.shape) for part in (logits, state, attention)] == [(2, 11), (2, 9), (2, 6)]


def test_attention_sums_to_one(model: CaptionModel, features: NDArray[np.float32]) -> None:
    _, attention = read_aloud(model, features, TOKENS)
    assert attention.min() >= 0
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-6)


def test_state_carried_from_step_to_step_equals_the_unrolled_sequence(
    model: CaptionModel, features: NDArray[np.float32]
) -> None:
    logits, attention = read_aloud(model, features, TOKENS[:2])
    encoded, keys, state = model.encode(features)
    for t in range(TOKENS.shape[1]):
        step_logits, state, step_attention = model.step(TOKENS[:2, t], state, encoded, keys)
        np.testing.assert_allclose(as_numpy(step_logits)[0], logits[:, t], atol=1e-5)
        np.testing.assert_allclose(as_numpy(step_attention)[0], attention[:, t], atol=1e-6)


def test_captions_of_one_image_share_its_features(model: CaptionModel, features: NDArray[np.float32]) -> None:
    grouped = read_aloud(model, features, TOKENS)
    repeated = read_aloud(model, features.repeat(2, axis=0), TOKENS)
    for one, other in zip(grouped, repeated, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_padding_after_a_caption_changes_nothing_before_it(model: CaptionModel, features: NDArray[np.float32]) -> None:
    short, _ = read_aloud(model, features, TOKENS[:2])
    padded, _ = read_aloud(model, features, np.pad(TOKENS[:2], [(0, 0), (0, 3)]))
    np.testing.assert_allclose(padded[:, :4], short, atol=1e-5)


def test_the_recurrence_is_the_textbook_gru(model: CaptionModel, features: NDArray[np.float32]) -> None:
    """Against `keras.layers.GRUCell` with the same weights, fed the word and the context this model computed."""
    cell = keras.layers.GRUCell(9, reset_after=True)
    encoded, keys, _ = model.encode(features)
    state = np.random.default_rng(1).normal(size=(2, 9)).astype(np.float32)
    word = model.embedding(np.array([4, 5]))
    after, context, _ = model.advance(model.from_word(word), state, encoded, keys)
    inputs = keras.ops.concatenate([word, context], axis=-1)
    cell.build(inputs.shape)
    start = model.config.attention_size + model.gate_size
    kernel, bias = as_numpy(model.from_state.kernel, model.from_state.bias)
    word_kernel, word_bias = as_numpy(model.from_word.kernel, model.from_word.bias)
    cell.kernel.assign(np.concatenate([word_kernel, *as_numpy(model.from_context.kernel)]))
    cell.recurrent_kernel.assign(kernel[:, start:])
    cell.bias.assign(np.stack([word_bias, bias[start:]]))
    expected, _ = cell(inputs, [state])
    np.testing.assert_allclose(*as_numpy(after, expected), atol=1e-5)


def test_additive_attention_is_bahdanaus(features: NDArray[np.float32]) -> None:
    """Against the formula written out in NumPy."""
    keras.utils.set_random_seed(3)
    model = build_model(VARIANTS["tutorial"])
    encoded, keys, _ = model.encode(features)
    state = np.random.default_rng(1).normal(size=(2, 9)).astype(np.float32)
    _, context, attention = model.advance(np.zeros((2, 27), np.float32), state, encoded, keys)
    encoded, keys, context, attention = as_numpy(encoded, keys, context, attention)
    kernel, bias, score = as_numpy(model.from_state.kernel, model.from_state.bias, model.score.kernel)
    for n in range(2):
        scores = np.tanh(keys[n] + state[n] @ kernel[:, :5] + bias[:5]) @ score[:, 0]
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(attention[n], weights, atol=1e-6)
        np.testing.assert_allclose(context[n], weights @ encoded[n], atol=1e-5)


def test_initial_state(features: NDArray[np.float32]) -> None:
    mean = build_model(SMALL)
    zero = build_model(VARIANTS["tutorial"])
    assert not as_numpy(zero.encode(features)[2])[0].any()
    encoded, _, state = as_numpy(*mean.encode(features))
    kernel, bias = as_numpy(mean.initial_state.kernel, mean.initial_state.bias)
    np.testing.assert_allclose(state, np.tanh(encoded.mean(axis=1) @ kernel + bias), atol=1e-6)


def test_dropout_acts_in_training_only(features: NDArray[np.float32]) -> None:
    model = build_model(SMALL)
    one, other = (read_aloud(model, features, TOKENS, training=True)[0] for _ in range(2))
    assert abs(one - other).max() > 1e-3
    one, other = (read_aloud(model, features, TOKENS)[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)


def bfloat16_is_truncated() -> bool:
    """Whether TensorFlow cuts sums of products off, as without AVX-512, instead of rounding them (here to 1.0078)."""
    ones, terms = tf.ones((1, 2), tf.bfloat16), tf.constant([[1.0], [0.00586]], tf.bfloat16)
    return float(tf.matmul(ones, terms)[0, 0]) == 1.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_in_bfloat16_are_those_in_float32(variant: str) -> None:
    """Also those of biases, which are sums over all locations or words of a batch."""
    # Cut off, each product is 0.3 % too small, and a gradient is made of a dozen.
    bound = 0.06 if bfloat16_is_truncated() else 0.03
    config = dataclasses.replace(VARIANTS[variant], locations=64, dropout=0.0)
    random = np.random.default_rng(2)
    features = random.normal(size=(48, 64, 10)).astype(np.float32)
    tokens = random.integers(4, 11, (240, 12), np.int32)
    targets = np.roll(tokens, -1, axis=1)
    keras.utils.set_random_seed(3)
    exact, rough = build_model(config), build_model(config, "bfloat16")
    gradients = []
    for model in (exact, rough):
        for variable, value in zip(model.trainable_variables, exact.trainable_variables, strict=True):
            variable.assign(value)
        with tf.GradientTape() as tape:
            logits, _ = model.teacher_forced(*model.encode(features), tokens, 5)
            loss = mean_over_words(cross_entropy(logits, targets), targets)
        found = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        gradients.append([tf.convert_to_tensor(gradient).numpy() for gradient in found])
    for variable, expected, found in zip(exact.trainable_variables, *gradients, strict=True):
        assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected), variable.path


@pytest.mark.skipif(not (RELEASED / "decoder.weights.h5").exists(), reason="not in the source distribution")
def test_the_released_checkpoint_is_still_read() -> None:
    """Its file calls layers by their classes, so a class that takes another name would leave it unreadable."""
    checkpoint = load_checkpoint(RELEASED)
    biases = [member.output_bias.numpy() for member in members_of(checkpoint.model)]
    assert [bias.shape for bias in biases] == [(1117,)] * 2
    assert all(np.ptp(bias) > 1 for bias in biases)  # drawn at random, they would all be 0


def test_weights_that_are_loaded_next_are_not_drawn() -> None:
    """Where Keras' default would: on JAX each shape of them is a program to compile."""
    with loaded_later():
        kernels = [keras.layers.Dense(3), keras.layers.Conv2D(3, 1)]
    kernels.append(keras.layers.Dense(3))
    for layer in kernels:
        layer.build((1, 2, 2, 5))
    assert [bool(np.any(layer.kernel)) for layer in kernels] == [False, False, True]
