"""The trained Keras model in TensorFlow, as tutorials run it and compiled, and in LiteRT."""

# ruff: noqa: D102 (methods are described where `benchmarks.engine` declares them)
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engine import PAD, START, UNKNOWN, Encoded, StepwiseEngine, likeliest


class _Keras(StepwiseEngine):
    def __init__(self, folder: Path, threads: int) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        import keras

        from caplet_export.checkpoint import load_checkpoint

        super().__init__(folder)
        self._extractor = keras.models.load_model(folder / "keras/extractor.keras", compile=False)
        self._model = load_checkpoint(folder / "keras/run").model
        config = self._model.config
        self._locations, self._channels = config.locations, config.extractor_channels


class Predict(_Keras):
    """The tutorial's loop: `model.predict` for the photo, and for every word."""

    def __init__(self, folder: Path, threads: int) -> None:
        import keras

        super().__init__(folder, threads)
        captioner = self._model

        class Encoder(keras.Model):  # type: ignore[misc]
            def call(self, grid: Any) -> Any:
                return captioner.encode(grid)

        class Decoder(keras.Model):  # type: ignore[misc]
            def call(self, inputs: Any) -> Any:
                return captioner.step(*inputs)

        self._encoder, self._decoder = Encoder(), Decoder()

    def encode(self, pixels: NDArray[np.uint8]) -> Encoded:
        grid = self._extractor.predict(pixels / np.float32(127.5) - 1, verbose=0)
        return Encoded(*self._encoder.predict(grid.reshape(1, self._locations, self._channels), verbose=0))

    def step(self, token: int, state: Any, encoded: Encoded) -> tuple[int, Any]:
        inputs = (np.array([token]), state, encoded.features, encoded.keys)
        logits, next_state, _ = self._decoder.predict(inputs, verbose=0)
        return likeliest(logits), next_state


class Function(_Keras):
    """The same loop, each step a compiled `tf.function` that also chooses the word."""

    def __init__(self, folder: Path, threads: int) -> None:
        import tensorflow as tf

        super().__init__(folder, threads)
        forbidden = np.zeros(len(self._words), np.float32)
        forbidden[[PAD, START, UNKNOWN]] = -np.inf

        def encode(pixels: Any) -> Any:
            grid = self._extractor(tf.cast(pixels, tf.float32) / 127.5 - 1.0, training=False)
            return self._model.encode(tf.reshape(grid, (1, self._locations, self._channels)))

        def step(token: Any, state: Any, features: Any, keys: Any) -> Any:
            logits, next_state, _ = self._model.step(token, state, features, keys)
            return tf.argmax(logits + forbidden, axis=1), next_state

        self._encode, self._step = (tf.function(work, autograph=False) for work in (encode, step))
        self._constant = tf.constant

    def encode(self, pixels: NDArray[np.uint8]) -> Encoded:
        encoded = Encoded(*self._encode(self._constant(pixels)))
        encoded.state.numpy()  # waits until it is computed
        return encoded

    def step(self, token: int, state: Any, encoded: Encoded) -> tuple[int, Any]:
        word, next_state = self._step(self._constant([token]), state, encoded.features, encoded.keys)
        return int(word.numpy()[0]), next_state


class LiteRt(StepwiseEngine):
    """LiteRT (once TensorFlow Lite) with its XNNPACK delegate, float32."""

    def __init__(self, folder: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        super().__init__(folder)
        self._encode, self._step = (
            Interpreter(str(folder / f"litert/{name}.tflite"), num_threads=threads).get_signature_runner()
            for name in ("encoder", "decoder")
        )

    def encode(self, pixels: NDArray[np.uint8]) -> Encoded:
        outputs = self._encode(pixels=pixels)
        return Encoded(*(outputs[name] for name in Encoded._fields))

    def step(self, token: int, state: Any, encoded: Encoded) -> tuple[int, Any]:
        outputs = self._step(
            token=np.array([token], np.int64), state=state, features=encoded.features, keys=encoded.keys
        )
        return likeliest(outputs["logits"]), outputs["next_state"]
