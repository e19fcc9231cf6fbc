"""caplet itself, as a program that imports it would use it."""

# ruff: noqa: D102 (methods are described where `benchmarks.engine` declares them)
from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.engine import END, StagedEngine
from caplet import Captioner
from caplet.decode import Encoded, Floats, StepResult, search

_FIRST_WORD = 4


class Caplet(StagedEngine):
    """`Captioner.caption`; the beam is the bundle's own where none is given."""

    def __init__(self, folder: Path, threads: int, bundle: str, beam_size: int | None = None) -> None:
        self._captioner = Captioner(folder / bundle, threads=threads)
        self._beam_size = beam_size
        manifest = self._captioner.bundle.manifest
        self.size = (manifest.width, manifest.height)

    def caption(self, photo: Path, words: int) -> str:
        return self._captioner.caption(photo, beam_size=self._beam_size).text

    def encode(self, pixels: NDArray[np.uint8]) -> Encoded:
        return self._captioner.sessions.encode(pixels)

    def decode(self, encoded: Encoded, words: int) -> None:
        search(self._endless_step, encoded, self._captioner.decoding(self._beam_size, words))

    def _endless_step(self, token: NDArray[np.int64], state: Floats, features: Floats, keys: Floats) -> StepResult:
        result = self._captioner.sessions.step(token, state, features, keys)
        result.tokens[result.tokens == END] = _FIRST_WORD
        return result
