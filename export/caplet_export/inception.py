"""The feature extractor: InceptionV3 without its classifier, from pixels to a grid of features (default: 8×8×2048)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import keras

from caplet_export.config import INCEPTION_BLOCKS
from caplet_export.errors import ConfigurationError, in_one_line
from caplet_export.scopes import computing_in, loaded_later

INPUT_SIZE = 299
NAME = "inception"
"""Name of the extractor, and so of its operators in graphs: Keras would number the extractors of a process."""
JOINED = "blocks"
"""Name of the layer that puts the outputs of several blocks side by side."""


def build_extractor(weights: str | None, dtype: str = "float32", blocks: Sequence[str] = ("mixed10",)) -> keras.Model:
    """InceptionV3 (Szegedy et al., CVPR 2016) up to a block, or up to several blocks whose grids have one size.

    Input float32 [N,299,299,3] in [-1,1]; output [N,8,8,2048] of `mixed10`, the last, or `mixed9`, [N,8,8,1280] of
    `mixed8`, or the channels of several blocks side by side; a lower block has a larger grid. It is in `dtype`.

    Args:
        weights: `imagenet` for Keras' own download, a path to weights of `InceptionV3(include_top=False)`, or None
            for random weights (tests).
        dtype: `float32`, or `bfloat16` to compute in it with float32 variables.
        blocks: the blocks whose output it gives, of `mixed0` to `mixed10`.

    Raises:
        ConfigurationError: the weights cannot be had, or have other shapes; no block of that name.
    """
    try:
        # Keras warns, many times over, before it says in an error what does not fit.
        with warnings.catch_warnings(), computing_in(dtype), loaded_later() if weights else nullcontext():
            warnings.simplefilter("ignore")
            whole = keras.applications.InceptionV3(
                include_top=False, weights=weights, input_shape=(INPUT_SIZE, INPUT_SIZE, 3)
            )
    except Exception as error:  # Keras' download raises a bare Exception
        told, remedy = "not weights of InceptionV3 without top", ""
        if weights == "imagenet":
            told = "Keras' weights cannot be obtained"
            remedy = "; get that file elsewhere, and put it into ~/.keras/models"
        raise ConfigurationError(f"{weights}: {told}: {in_one_line(error)}{remedy}") from error
    outputs = [_block(whole, block) for block in blocks]
    joined = outputs[0] if len(outputs) == 1 else keras.layers.Concatenate(name=JOINED)(outputs)
    return keras.Model(whole.input, joined, name=NAME)


def split_blocks(extractor: keras.Model) -> Callable[[Any], list[Any]]:
    """A function from pixels to the outputs of the extractor's blocks, one by one instead of side by side."""
    last = extractor.layers[-1]
    if last.name != JOINED:
        return lambda pixels: [extractor(pixels, training=False)]
    parts = keras.Model(extractor.input, list(last.input), name=NAME)
    return lambda pixels: list(parts(pixels, training=False))


def tap_blocks(extractor: keras.Model, blocks: Sequence[str]) -> keras.Model:
    """A model from pixels to a dictionary of these blocks' outputs, of any sizes; layers above the last are not run.

    Raises:
        ConfigurationError: no block of that name.
    """
    return keras.Model(extractor.input, {block: _block(extractor, block) for block in blocks})


def upper_blocks(extractor: keras.Model, layer: str) -> keras.Model:
    """A model from the output of block `layer` to the extractor's output. It shares the extractor's variables: training
    it trains the extractor.

    Raises:
        ConfigurationError: no block of that name, or not one below all blocks that the extractor gives.
    """
    output = _block(extractor, layer)
    if output is extractor.output:
        raise ConfigurationError(f"{layer}: there is nothing above it to train")
    try:
        upper = keras.Model(output, extractor.output)
        if set(upper.layers).isdisjoint(lower_blocks(extractor, layer).layers):
            return upper
        cause = None  # Keras before 3.13 makes a model that fails when it is called
    except ValueError as error:
        cause = error
    raise ConfigurationError(f"{layer}: is not below every block that is read; name a lower one") from cause


def lower_blocks(extractor: keras.Model, layer: str) -> keras.Model:
    """A model from pixels to the output of block `layer`, the input of `upper_blocks`; it shares variables likewise.

    Raises:
        ConfigurationError: no block of that name.
    """
    return keras.Model(extractor.input, _block(extractor, layer))


def _block(extractor: keras.Model, layer: str) -> Any:
    names = {known.name for known in extractor.layers}
    if layer not in INCEPTION_BLOCKS or layer not in names:
        there = ", ".join(block for block in INCEPTION_BLOCKS if block in names)
        raise ConfigurationError(f"InceptionV3 has no block {layer!r} here (blocks: {there})")
    return extractor.get_layer(layer).output


def scale(pixels: Any) -> Any:
    """Pixels uint8 as InceptionV3 expects them: x / 127.5 - 1, float32."""
    return keras.ops.cast(pixels, "float32") / 127.5 - 1.0
