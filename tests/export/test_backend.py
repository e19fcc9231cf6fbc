"""Loading Keras: it computes the same whatever a machine's user has set for other programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from caplet_export import backend
from caplet_export.backend import load_keras, load_tensorflow
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


@pytest.mark.parametrize(("platform", "hidden"), [("darwin", [([], "GPU")]), ("linux", [])])
def test_what_apples_plugin_adds_to_tensorflow_is_not_computed_on(
    platform: str, hidden: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tensorflow-metal, losses rise that fall on a CPU."""
    told: list[object] = []

    def hide(*given: object) -> None:
        told.append(given)
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(backend, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(tf.config, "set_visible_devices", hide)
    load_tensorflow()
    assert told == hidden


@pytest.mark.skipif(sys.platform == "win32", reason="there, HDF5 locks no files")
def test_weights_are_read_where_files_cannot_be_locked(tmp_path: Path) -> None:
    """As on many network drives, on which another program's lock stands in here for the lack of any."""
    import fcntl

    keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]).save_weights(tmp_path / "some.weights.h5")
    code = (
        "import sys, caplet_export.backend as backend; backend.load_keras('numpy'); import h5py; h5py.File(sys.argv[1])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    with open(tmp_path / "some.weights.h5", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        command = [sys.executable, "-c", code, file.name]
        assert subprocess.run(command, env=environment, capture_output=True, text=True).stderr == ""
