"""Keras and its backend, loaded as the verbs need them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def load_keras(backend: str) -> None:
    """Import Keras on this backend, with the settings it comes with.

    What the environment or a `keras.json` of the user asks for, as other programs need it, would compute something
    else: in float16 without a word, or no Inception at all.
    """
    os.environ["KERAS_BACKEND"] = backend
    # HDF5 locks what it reads and writes, which fails on many network drives. Ours is written under another name, in a
    # folder that is locked where that can be done.
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")


def load_tensorflow() -> None:
    """Import TensorFlow and Keras with standard error silenced: no setting turns off some of their start-up lines."""
    aside = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        load_keras("tensorflow")
        import tensorflow as tf

        if sys.platform == "darwin":
            # Apple's plugin tensorflow-metal is widely reported to train wrongly.
            with suppress(RuntimeError):  # which says that the caller has computed on them already
                tf.config.set_visible_devices([], "GPU")
        # TensorFlow looks up its devices at first use, and writes lines about them too.
        tf.config.list_physical_devices()
        # Its advice, such as that the fifth run of `ablation` has been compiled anew, is for programmers.
        tf.get_logger().setLevel("ERROR")
    finally:
        os.dup2(aside, 2)
        os.close(aside)
        os.close(nowhere)
