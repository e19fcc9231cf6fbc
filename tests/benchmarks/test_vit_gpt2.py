"""ViT-GPT2 by single steps beside transformers' own `generate`, and its 8-bit graphs; small, with random weights."""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import vit_gpt2_cases
from benchmarks.engine_onnx import VitGpt2

NEEDS = [name for name in ("torch", "transformers", "onnxscript") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(NEEDS), reason=f"not installed: {', '.join(NEEDS)}")


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_single_steps_write_what_generate_does(process: ProcessPoolExecutor) -> None:
    expected, written = process.submit(vit_gpt2_cases.written, 9).result()
    assert written == expected
    assert len(set(written)) > 4


def test_the_graphs_in_8_bits_keep_the_contract_and_run(
    process: ProcessPoolExecutor, tmp_path: Path, photos: Path
) -> None:
    pixels = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    expected = process.submit(vit_gpt2_cases.write, tmp_path / "graphs", pixels).result()
    engine = VitGpt2(tmp_path, 1, "graphs")
    (photo,) = engine._encoder.run(["photo"], {"pixels": pixels})
    assert photo.shape == expected.shape == (4, 1, 2, 17, 16)
    assert np.corrcoef(photo.ravel(), expected.ravel())[0, 1] > 0.99
    for past in (0, 1, 5):
        feeds = {"token": np.array([3]), "past": photo[..., :past, :], "photo": photo}
        token, cache = engine._decoder.run(["next", "cache"], feeds)
        assert token.shape == (1,) and cache.shape == (4, 1, 2, past + 1, 16)
    assert engine.caption(photos / "cat.jpg", 7) is None
