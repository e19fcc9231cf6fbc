"""The proof that converted graphs compute what Keras computes: tensor by tensor, and caption by caption.

Keras and onnxruntime each start from the pixels, with greedy loops that share no code with each other or with the
runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
from numpy.typing import NDArray

from caplet_export.convert import take_top_k
from caplet_export.errors import ParityError
from caplet_export.inception import scale
from caplet_export.model import Captioner
from caplet_export.onnx_graph import Session
from caplet_export.text import END, NEVER_SAID, START

TOLERANCE = 1e-3
"""Largest allowed difference; for tensors other than log-probabilities times their largest value if that exceeds 1."""
IDENTICAL_CAPTIONS = 0.99
"""Share of greedy captions that must be the same, word for word. Words that tie up to rounding may change places."""

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass
class Parity:
    """The result of the comparison so far: differences and largest values by tensor, and captions that differ."""

    photos: int = 0
    identical_captions: int = 0
    max_difference: dict[str, float] = field(default_factory=dict)
    largest_value: dict[str, float] = field(default_factory=dict)
    different_captions: list[dict[str, Any]] = field(default_factory=list)

    def compare(self, name: str, expected: NDArray[Any], found: NDArray[Any]) -> None:
        """Take one more array of output `name` into account. Raises a ParityError if the shapes differ."""
        if expected.shape != found.shape:
            raise ParityError(f"{name}: Keras has shape {expected.shape}, onnxruntime {found.shape}")
        # Not max(): a NaN must not be taken for a small difference.
        difference = float(np.max(np.abs(expected - found)))
        self.max_difference[name] = float(np.maximum(self.max_difference.get(name, 0.0), difference))
        self.largest_value[name] = max(self.largest_value.get(name, 0.0), float(np.max(np.abs(expected))))

    @property
    def failures(self) -> list[str]:
        """Everything that is out of tolerance, a line each."""
        lines = []
        for name, difference in self.max_difference.items():
            allowed = TOLERANCE if name == "log_probs" else TOLERANCE * max(1.0, self.largest_value[name])
            if not difference <= allowed:
                lines.append(f"{name} differs by {difference:.2e}, allowed is {allowed:.2e}")
        if self.identical_captions < IDENTICAL_CAPTIONS * self.photos:
            lines.append(f"only {self.identical_captions} of {self.photos} greedy captions are the same")
        return lines

    def check(self) -> None:
        """Raise a ParityError that names everything out of tolerance, or if nothing was compared."""
        if not self.photos:
            raise ParityError("nothing was compared")
        if self.failures:
            raise ParityError("the graphs do not match Keras: " + "; ".join(self.failures))

    def to_json(self) -> dict[str, Any]:
        """The content of parity.json."""
        return {**asdict(self), "tolerance": TOLERANCE, "identical_captions_required": IDENTICAL_CAPTIONS}


class KerasCaptioner:
    """The reference: the trained model in Keras, from pixels on."""

    def __init__(self, extractor: keras.Model, model: Captioner) -> None:
        config = model.config

        def encode(pixels: Any) -> Any:
            grid = extractor(scale(pixels), training=False)
            return model.encode(tf.reshape(grid, (-1, config.locations, config.extractor_channels)))

        self._encode = tf.function(encode, reduce_retracing=True, autograph=False)
        self._step = tf.function(model.step, reduce_retracing=True, autograph=False)

    def encode(self, pixels: NDArray[np.uint8]) -> dict[str, Floats]:
        """Features, keys and first state of a batch of photos."""
        return dict(zip(("features", "keys", "state"), (part.numpy() for part in self._encode(pixels)), strict=True))

    def step(self, token: Ids, encoded: dict[str, Floats], state: Floats) -> dict[str, Floats]:
        """One step, with log-probabilities over the whole vocabulary."""
        logits, next_state, attention = self._step(
            tf.constant(token), tf.constant(state), encoded["features"], encoded["keys"]
        )
        return {
            "log_probs": tf.nn.log_softmax(logits).numpy(),
            "next_state": next_state.numpy(),
            "attention": attention.numpy(),
        }


class OnnxCaptioner:
    """The graphs in onnxruntime: the encoder, the step with every log-probability, and the step as it ships."""

    def __init__(self, encoder: onnx.ModelProto, decoder: onnx.ModelProto) -> None:
        self._encoder = Session(encoder)
        self._whole = Session(decoder)
        self._shipped = Session(take_top_k(decoder))

    def encode(self, pixels: NDArray[np.uint8]) -> dict[str, Floats]:
        """Features, keys and first state of a batch of photos."""
        return self._encoder({"pixels": pixels})

    def step(self, token: Ids, encoded: dict[str, Floats], state: Floats) -> dict[str, Floats]:
        """One step, with log-probabilities over the whole vocabulary."""
        return self._whole({**encoded, "token": token, "state": state})

    def greedy(self, encoded: dict[str, Floats], max_length: int) -> list[list[int]]:
        """Ids of greedy captions by the shipped graph, without `<end>`: the first of its top words at each step."""
        state = encoded["state"]
        token = np.full(len(state), START, np.int64)
        alive = np.ones(len(state), bool)
        written = []
        for _ in range(max_length):
            outputs = self._shipped({**encoded, "token": token, "state": state})
            token, state = outputs["tokens"][:, 0], outputs["next_state"]
            written.append(token)
            alive &= token != END
            if not alive.any():
                break
        return [_until_end(row) for row in np.stack(written, axis=1).tolist()]


def prove(
    reference: KerasCaptioner,
    graphs: OnnxCaptioner,
    batches: Iterable[tuple[Sequence[str], NDArray[np.uint8]]],
    max_length: int,
) -> Parity:
    """Compare every output tensor and whole greedy captions on batches of (names, pixels uint8 [N,h,w,3]).

    Both sides are given Keras' words at each step, but each its own state, so that differences may add up as they do in
    use. A photo's steps count until its caption ends.

    Raises:
        ParityError: an output has another shape. Whether differences are in tolerance, `Parity.check` tells.
    """
    parity = Parity()
    for names, pixels in batches:
        expected, found = reference.encode(pixels), graphs.encode(pixels)
        for name in expected:
            parity.compare(name, expected[name], found[name])
        captions = _compare_steps(reference, graphs, expected, found, max_length, parity)
        for name, keras_ids, onnx_ids in zip(names, captions, graphs.greedy(found, max_length), strict=True):
            parity.photos += 1
            parity.identical_captions += keras_ids == onnx_ids
            if keras_ids != onnx_ids:
                parity.different_captions.append({"photo": name, "keras": keras_ids, "onnx": onnx_ids})
    return parity


def _compare_steps(
    reference: KerasCaptioner,
    graphs: OnnxCaptioner,
    expected: dict[str, Floats],
    found: dict[str, Floats],
    max_length: int,
    parity: Parity,
) -> list[list[int]]:
    """Compare step by step along Keras' greedy captions, and return the ids of those, without `<end>`."""
    state, onnx_state = expected["state"], found["state"]
    token = np.full(len(state), START, np.int64)
    alive = np.ones(len(state), bool)
    written = []
    for _ in range(max_length):
        step = reference.step(token, expected, state)
        onnx_step = graphs.step(token, found, onnx_state)
        for name, values in step.items():
            parity.compare(name, values[alive], onnx_step[name][alive])
        allowed = step["log_probs"].copy()
        allowed[:, list(NEVER_SAID)] = -np.inf
        token = np.argmax(allowed, axis=1)
        state, onnx_state = step["next_state"], onnx_step["next_state"]
        written.append(token)
        alive &= token != END
        if not alive.any():
            break
    return [_until_end(row) for row in np.stack(written, axis=1).tolist()]


def _until_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(END)] if END in ids else ids
