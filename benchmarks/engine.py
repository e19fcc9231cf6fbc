"""What every engine can do, and the greedy loop for those that have none of their own."""

# ruff: noqa: D102 (methods are described where `benchmarks.engine` declares them)
from __future__ import annotations

import json
from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PAD, START, END, UNKNOWN = range(4)  # ids that the bundle format fixes


class Encoded(NamedTuple):
    """What an encoder makes of a photo, in the arrays of its own library."""

    features: Any
    keys: Any
    state: Any


class Engine(ABC):
    """Something that captions photos. Without stages of its own (`StagedEngine`), it is measured as a whole only."""

    @abstractmethod
    def caption(self, photo: Path, words: int) -> str | None:
        """Caption a photo. Random weights, which never end a sentence, write `words` words instead and return None."""


class StagedEngine(Engine):
    """An engine whose encoder and decoder can be run by themselves. `size` is the width and height of its photos."""

    size: tuple[int, int]

    @abstractmethod
    def encode(self, pixels: NDArray[np.uint8]) -> Any:
        """Run the encoder on uint8 pixels [1,height,width,3]."""

    @abstractmethod
    def decode(self, encoded: Any, words: int) -> None:
        """Write exactly `words` words, wherever the sentence would have ended."""


class StepwiseEngine(StagedEngine):
    """Greedy search, a word at a time: the loop of the tutorials."""

    def __init__(self, folder: Path) -> None:
        bundle = folder / "int8"
        manifest = json.loads((bundle / "manifest.json").read_text())
        self._words = (bundle / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
        self._max_length = manifest["decoding"]["max_length"]
        forms = manifest["decoding"].get("forms", ())  # bundles of versions 1 and 2 have none
        self._forms = {(word, following): form for word, form, following in forms}
        self.size = (manifest["preprocessing"]["width"], manifest["preprocessing"]["height"])

    @abstractmethod
    def encode(self, pixels: NDArray[np.uint8]) -> Encoded:
        """Run the encoder on uint8 pixels [1,height,width,3]."""

    @abstractmethod
    def step(self, token: int, state: Any, encoded: Encoded) -> tuple[int, Any]:
        """The likeliest word after `token`, and the next state."""

    def caption(self, photo: Path, words: int) -> str:
        encoded = self.encode(plain_pixels(photo, self.size))
        token, state, written = START, encoded.state, []
        for _ in range(self._max_length):
            token, state = self.step(token, state, encoded)
            if token == END:
                break
            written.append(token)
        spelled = [self._forms.get(pair, pair[0]) for pair in pairwise(written)] + written[-1:]
        said = [self._words[token] for token in spelled]
        return "".join(word if word.startswith("'") else f" {word}" for word in said).strip()

    def decode(self, encoded: Encoded, words: int) -> None:
        token, state = START, encoded.state
        for _ in range(words):
            token, state = self.step(token, state, encoded)


def plain_pixels(photo: Path | BinaryIO, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A photo read by Pillow as most people do: uint8 [1,height,width,3]; `size` is width and height."""
    with Image.open(photo) as image:
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))[None]


def centred_pixels(photo: Path, size: int) -> NDArray[np.float32]:
    """`plain_pixels` as most models of transformers take them: float32 [1,3,size,size], -1 to 1."""
    pixels = plain_pixels(photo, (size, size)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels, np.float32) / 127.5 - 1


def likeliest(scores: NDArray[np.float32]) -> int:
    """The best token of scores [1,V], except padding, start and unknown."""
    scores = np.array(scores)
    scores[:, [PAD, START, UNKNOWN]] = -np.inf
    return int(scores.argmax())
