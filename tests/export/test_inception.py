"""The feature extractor: cut where it is asked to be, its upper part the rest of it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from caplet_export.errors import ConfigurationError
from caplet_export.inception import build_extractor, split_blocks, tap_blocks, upper_blocks


def test_it_ends_at_the_block_asked_for_and_goes_on_from_there() -> None:
    whole = build_extractor(None)
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 299, 299, 3)).astype(np.float32)
    features = np.asarray(whole(pixels, training=False))
    assert features.shape == (1, 8, 8, 2048)
    lower = keras.Model(whole.input, whole.get_layer("mixed9").output)
    below = np.asarray(lower(pixels, training=False))
    np.testing.assert_allclose(np.asarray(upper_blocks(whole, "mixed9")(below, training=False)), features, atol=1e-4)

    cut = build_extractor(None, blocks=["mixed9"])
    assert cut.output_shape == (None, 8, 8, 2048)
    cut.set_weights(lower.get_weights())
    np.testing.assert_allclose(np.asarray(cut(pixels, training=False)), below, atol=1e-4)

    both = build_extractor(None, blocks=["mixed10", "mixed9"])
    both.set_weights(whole.get_weights())
    joined, parts = np.asarray(both(pixels, training=False)), split_blocks(both)(pixels)
    np.testing.assert_allclose(joined, np.concatenate([features, below], axis=-1), atol=1e-4)
    np.testing.assert_allclose(np.concatenate(parts, axis=-1), joined, atol=1e-4)
    for blocks in (["mixed10"], ["mixed9", "mixed10"]):
        tapped = tap_blocks(whole, blocks)(pixels, training=False)
        assert sorted(tapped) == sorted(blocks)
        for block in blocks:
            expected = {"mixed9": below, "mixed10": features}[block]
            np.testing.assert_allclose(np.asarray(tapped[block]), expected, atol=1e-4)
    (alone,) = split_blocks(whole)(pixels)
    np.testing.assert_allclose(np.asarray(alone), features, atol=1e-4)


def test_blocks_that_are_not_there_or_have_nothing_above(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = block = keras.Input((4, 4, 3))
    for number in range(11):
        block = keras.layers.Activation("relu", name=f"mixed{number}")(block)
    small = keras.Model(pixels, block)
    monkeypatch.setattr(keras.applications, "InceptionV3", lambda **_: small)
    with pytest.raises(ConfigurationError, match="no block 'mixed11'"):
        build_extractor(None, blocks=["mixed11"])
    with pytest.raises(ConfigurationError, match="mixed9: is not below every block that is read"):
        upper_blocks(build_extractor(None, blocks=["mixed10", "mixed8"]), "mixed9")
    cut = build_extractor(None, blocks=["mixed8"])
    with pytest.raises(ConfigurationError, match="'mixed9' here"):
        upper_blocks(cut, "mixed9")
    with pytest.raises(ConfigurationError, match="nothing above"):
        upper_blocks(cut, "mixed8")


def test_weights_that_cannot_be_downloaded_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: Any) -> None:
        raise Exception("URL fetch failure on somewhere: None -- Connection refused")

    monkeypatch.setattr(keras.applications, "InceptionV3", offline)
    with pytest.raises(ConfigurationError, match=r"imagenet: Keras' weights cannot be obtained: URL .*; get that file"):
        build_extractor("imagenet")
