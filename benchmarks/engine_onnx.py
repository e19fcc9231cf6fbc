"""Other ways to run ONNX graphs of the same contract, onnxruntime as it comes and OpenVINO; and ViT-GPT2's graphs."""

# ruff: noqa: D102 (methods are described where `benchmarks.engine` declares them)
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engine import Encoded, Engine, StepwiseEngine, centred_pixels


class OnnxRuntime(StepwiseEngine):
    """onnxruntime with its default options, except for the number of threads and, if `spinning` is off, spinning."""

    def __init__(self, folder: Path, threads: int, graphs: str, *, spinning: bool = True) -> None:
        super().__init__(folder)
        self._encoder, self._decoder = _sessions(folder / graphs, threads, spinning)

    def encode(self, pixels: NDArray[np.uint8]) -> Encoded:
        return Encoded(*self._encoder.run(list(Encoded._fields), {"pixels": pixels}))

    def step(self, token: int, state: Any, encoded: Encoded) -> tuple[int, Any]:
        feeds = {"token": np.array([token]), "state": state, "features": encoded.features, "keys": encoded.keys}
        tokens, next_state = self._decoder.run(["tokens", "next_state"], feeds)
        return int(tokens[0, 0]), next_state


class OpenVino(StepwiseEngine):
    """OpenVINO for latency, its graphs reshaped to one photo, where it is fastest.

    Computes in float32 even on processors on which OpenVINO would use bfloat16, for the same results as the others.
    """

    def __init__(self, folder: Path, threads: int, graphs: str) -> None:
        import openvino

        super().__init__(folder)
        core = openvino.Core()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        requests = []
        for name in ("encoder", "decoder"):
            model = core.read_model(folder / graphs / f"{name}.onnx")
            shapes = {port.any_name: [1, *list(port.partial_shape)[1:]] for port in model.inputs}
            model.reshape(shapes)
            requests.append(core.compile_model(model, "CPU", options).create_infer_request())
        self._encoder, self._decoder = requests

    def encode(self, pixels: NDArray[np.uint8]) -> Encoded:
        outputs = self._encoder.infer({"pixels": pixels}, share_inputs=True)
        return Encoded(*(outputs[name] for name in Encoded._fields))

    def step(self, token: int, state: Any, encoded: Encoded) -> tuple[int, Any]:
        feeds = {"token": np.array([token]), "state": state, "features": encoded.features, "keys": encoded.keys}
        outputs = self._decoder.infer(feeds, share_inputs=True)
        return int(outputs["tokens"][0, 0]), np.array(outputs["next_state"])


class VitGpt2(Engine):
    """The graphs of `benchmarks.vit_gpt2`; threads sleep after a run, which is faster for two sessions in turns."""

    def __init__(self, folder: Path, threads: int, graphs: str) -> None:
        self._encoder, self._decoder = _sessions(folder / graphs, threads, spinning=False)

    def caption(self, photo: Path, words: int) -> None:
        size = self._encoder.get_inputs()[0].shape[-1]
        seen = self._encoder.run(None, {"pixels": centred_pixels(photo, size)})
        fixed = {f"photo{part}": array for part, array in enumerate(seen)}
        token, cache = np.zeros(1, np.int64), [array[:, :, :0] for array in seen]
        for _ in range(words + 1):  # one more, which ends the sentence
            past = {f"past{part}": array for part, array in enumerate(cache)}
            token, *cache = self._decoder.run(None, {"token": token, **past, **fixed})


def _sessions(folder: Path, threads: int, spinning: bool) -> tuple[Any, Any]:
    """Of the encoder and of the decoder."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    encoder, decoder = (
        onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder")
    )
    return encoder, decoder
