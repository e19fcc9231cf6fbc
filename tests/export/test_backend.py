"""Loading Keras: it computes the same whatever a machine's user has set for other programs."""

from __future__ import annotations

import keras
import pytest

from caplet_export.backend import load_keras
from caplet_export.inception import build_extractor


def test_settings_for_other_programs_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the file `~/.keras/keras.json` has them, since Keras 1."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    floatx, image_data_format = keras.config.floatx(), keras.config.image_data_format()
    try:
        keras.config.set_floatx("float16")
        keras.config.set_image_data_format("channels_first")
        load_keras("tensorflow")
        extractor = build_extractor(None)
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_image_data_format(image_data_format)
    assert (extractor.input.dtype, extractor.output.dtype) == ("float32", "float32")
    assert (extractor.input.shape, extractor.output.shape) == ((None, 299, 299, 3), (None, 8, 8, 2048))
