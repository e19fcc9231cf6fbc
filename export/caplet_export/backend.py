"""TensorFlow, loaded without the lines it writes about itself to standard error."""

from __future__ import annotations

import os


def load_tensorflow() -> None:
    """Import TensorFlow and Keras with standard error silenced: no setting turns off some of their start-up lines."""
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the environment asks for: the verbs need it
    aside = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import keras  # noqa: F401
        import tensorflow as tf

        # TensorFlow looks up its devices at first use, and writes lines about them too.
        tf.config.list_physical_devices()
        # Its advice, such as that the fifth run of `ablation` has been compiled anew, is for programmers.
        tf.get_logger().setLevel("ERROR")
    finally:
        os.dup2(aside, 2)
        os.close(aside)
        os.close(nowhere)
