"""A stand-in for InceptionV3 with each of its patterns once: seconds to convert, not a minute."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from caplet_export.config import ModelConfig
from caplet_export.inception import JOINED
from caplet_export.model import CaptionModel, build_model

SIZE = 35
"""Photos are SIZE×SIZE; the grid is 8×8."""

CONFIG = ModelConfig(
    vocabulary_size=24, channels=32, feature_size=12, attention_size=6, embedding_size=10, state_size=14
)


def build_tiny_extractor(blocks: int = 1) -> keras.Model:
    """Float [N,35,35,3] to [N,8,8,32]: valid and padded convolutions, both poolings, branches, batch norms.

    With two `blocks` a second such grid is made of the first, and their channels stand side by side.
    """
    keras.utils.set_random_seed(11)
    chance = keras.random.SeedGenerator(11)  # before Keras 3.13 the seed above is not that of `keras.random`
    pixels = keras.Input((SIZE, SIZE, 3))
    x = _conv(pixels, 8, 3, strides=2, padding="valid")
    x = layers.MaxPooling2D(3, strides=2)(x)
    pooled = layers.AveragePooling2D(3, strides=1, padding="same")(x)
    branches = [
        _conv(x, 12, 1),
        _conv(_conv(x, 6, 1), 16, 3),
        _conv(pooled, 4, 1),
    ]
    grid = layers.Concatenate()(branches)
    if blocks == 2:
        grid = layers.Concatenate(name=JOINED)([grid, _conv(grid, 32, 3)])
    model = keras.Model(pixels, grid)
    for layer in model.layers:  # batch norms of a fresh model change nothing, and could be left out unnoticed
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.variables:
                variable.assign(keras.random.uniform(variable.shape, 0.2, 1.2, seed=chance))
    return model


def build_tiny_model(config: ModelConfig = CONFIG, spread: float = 0.5) -> CaptionModel:
    """A captioner whose weights, biases too, are random and large enough that words follow from photos."""
    keras.utils.set_random_seed(12)
    random = np.random.default_rng(10)
    model = build_model(config)
    for variable in model.trainable_variables:
        variable.assign(variable + random.normal(0, spread, variable.shape))
    return model


def _conv(
    x: keras.KerasTensor, filters: int, kernel: int, strides: int = 1, padding: str = "same"
) -> keras.KerasTensor:
    x = layers.Conv2D(filters, kernel, strides=strides, padding=padding, use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(scale=False)(x))
