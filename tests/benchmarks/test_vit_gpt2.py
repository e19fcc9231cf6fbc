"""ViT-GPT2 by single steps beside transformers' own `generate`, and its 8-bit graphs; small, with random weights."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import vit_gpt2_cases
from benchmarks.engine_onnx import VitGpt2
from benchmarks.roster import VIT_GPT2_EXPORT, missing_packages

MISSING = missing_packages(VIT_GPT2_EXPORT)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


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
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # the usual kernels saturate without VNNI
    exact = onnxruntime.InferenceSession(tmp_path / "graphs/encoder.onnx", options).run(None, {"pixels": pixels})
    assert np.corrcoef(np.ravel(exact), np.ravel(expected))[0, 1] > 0.99
    engine = VitGpt2(tmp_path, 1, "graphs")
    photo = engine._encoder.run(None, {"pixels": pixels})
    assert [part.shape for part in photo] == [part.shape for part in expected] == [(1, 2, 17, 16)] * 4
    named = {f"photo{number}": part for number, part in enumerate(photo)}
    for past in (0, 1, 5):
        feeds = {f"past{number}": part[:, :, :past] for number, part in enumerate(photo)}
        token, *cache = engine._decoder.run(None, {"token": np.array([3]), **feeds, **named})
        assert token.shape == (1,) and [part.shape for part in cache] == [(1, 2, past + 1, 16)] * 4
    assert engine.caption(photos / "cat.jpg", 7) is None
