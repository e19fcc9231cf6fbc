"""The feature extractor: InceptionV3 without its classifier, pixels to a grid of features, 8×8×2048 by default."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import keras

from caplet_export.errors import ConfigurationError
from caplet_export.scopes import computing_in, loaded_later

INPUT_SIZE = 299
NAME = "inception"
"""Of the extractor, and so of its operators in graphs: Keras would number it, on and on through a process."""
JOINED = "blocks"
"""Name of the layer that puts the outputs of several blocks side by side."""


def build_extractor(weights: str | None, dtype: str = "float32", blocks: Sequence[str] = ("mixed10",)) -> keras.Model:
    """InceptionV3 (Szegedy et al., CVPR 2016) up to a block, or up to several with a grid of one size.

    Input float32 [N,299,299,3] in [-1,1]; output float32 [N,8,8,2048] of `mixed10`, the last, or of `mixed9`,
    [N,8,8,1280] of `mixed8`, or the channels of several side by side.

    Args:
        weights: `imagenet` for Keras' own download, a path to weights of `InceptionV3(include_top=False)`, or None
            for random weights (tests).
        dtype: `float32`, or `bfloat16` to compute in it with float32 variables.
        blocks: where it ends, `mixed0` to `mixed10`.

    Raises:
        ConfigurationError: the file is missing or its weights have other shapes; no block of that name.
    """
    try:
        # Keras warns, many times over, before it says in an error what does not fit.
        with warnings.catch_warnings(), computing_in(dtype), loaded_later() if weights else nullcontext():
            warnings.simplefilter("ignore")
            whole = keras.applications.InceptionV3(
                include_top=False, weights=weights, input_shape=(INPUT_SIZE, INPUT_SIZE, 3)
            )
    except Exception as error:  # Keras' download raises no narrower one
        reason = " ".join(str(error).split())[:200]
        told = "Keras' weights cannot be had" if weights == "imagenet" else "not weights of InceptionV3 without top"
        raise ConfigurationError(f"{weights}: {told}: {reason}") from error
    outputs = [_block(whole, block) for block in blocks]
    joined = outputs[0] if len(outputs) == 1 else keras.layers.Concatenate(name=JOINED)(outputs)
    return keras.Model(whole.input, joined, name=NAME)


def split_blocks(extractor: keras.Model) -> Callable[[Any], list[Any]]:
    """The extractor as a function to its blocks' outputs one by one, before they are put side by side."""
    last = extractor.layers[-1]
    if last.name != JOINED:
        return lambda pixels: [extractor(pixels, training=False)]
    parts = keras.Model(extractor.input, list(last.input), name=NAME)
    return lambda pixels: list(parts(pixels, training=False))


def tap_blocks(extractor: keras.Model, blocks: Sequence[str]) -> keras.Model:
    """The extractor to a dictionary of these blocks' outputs, of whatever sizes; what is above the last is not run.

    Raises:
        ConfigurationError: no block of that name.
    """
    return keras.Model(extractor.input, {block: _block(extractor, block) for block in blocks})


def upper_blocks(extractor: keras.Model, layer: str) -> keras.Model:
    """The output of block `layer`, below the extractor's last, to the extractor's output; shares the extractor's
    variables, so that what is trained here is trained there.

    Raises:
        ConfigurationError: no block of that name, or none that is below the last.
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
    """Pixels to the output of block `layer`, which is the input of `upper_blocks`; shares the extractor's variables.

    Raises:
        ConfigurationError: no block of that name.
    """
    return keras.Model(extractor.input, _block(extractor, layer))


def _block(extractor: keras.Model, layer: str) -> Any:
    blocks = [f"mixed{number}" for number in range(11)]
    names = {known.name for known in extractor.layers}
    if layer not in blocks or layer not in names:
        there = ", ".join(block for block in blocks if block in names)
        raise ConfigurationError(f"InceptionV3 has no block {layer!r} here (blocks: {there})")
    return extractor.get_layer(layer).output


def scale(pixels: Any) -> Any:
    """uint8 pixels to what InceptionV3 expects: x / 127.5 - 1, float32."""
    return keras.ops.cast(pixels, "float32") / 127.5 - 1.0
