"""Faults made on purpose: in the source, for the tests to notice, and on a device, for `caplet check` to notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import caplet.captioner
from caplet import Captioner
from caplet.check_command import check_golden
from caplet.sessions import Sessions
from tiny_bundle import rehash

HERE = Path(__file__).resolve().parent
# File of the package, what stands there once, what is put in its place.
SOURCE_BREAKS = {
    "two words of the vocabulary swapped": (
        "bundle.py",
        "    return words\n",
        "    return (*words[:8], words[9], words[8], *words[10:])\n",
    ),
    "state not carried on in greedy search": ("decode.py", "        state = result.state\n", ""),
    "state not carried on in beam search": (
        "decode.py",
        "state, token = result.state[rows.ravel()], tokens.ravel()",
        "state, token = np.zeros_like(result.state[rows.ravel()]), tokens.ravel()",
    ),
    "EXIF skipped": ("image.py", "        return int(image.getexif().get(0x0112, 1))\n", "        return 1\n"),
    "BGR": ("image.py", "described), dtype=np.uint8)", "described), dtype=np.uint8)[..., ::-1]"),
}
NOTICING = ["test_bundle_files.py", "test_captioner.py", "test_image.py", "test_image_formats.py"]


def run_tests(package: Path) -> subprocess.CompletedProcess[str]:
    """The tests of captions and pixels, on another copy of the package."""
    selected = "whole_bundle or numpy or orientation or photo_of_ordinary_size or channels or red_and_blue"
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", selected, *NOTICING]
    environ = {**os.environ, "PYTHONPATH": str(package.parent), "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=HERE, env=environ, capture_output=True, text=True, check=False)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(HERE.parents[1] / "runtime" / "caplet", tmp_path / "caplet"))


def test_unbroken_the_source_passes(package: Path) -> None:
    done = run_tests(package)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SOURCE_BREAKS)
def test_the_tests_notice(name: str, package: Path) -> None:
    file, sound, broken = SOURCE_BREAKS[name]
    source = (package / file).read_text(encoding="utf-8")
    assert source.count(sound) == 1
    (package / file).write_text(source.replace(sound, broken), encoding="utf-8")
    done = run_tests(package)
    assert done.returncode == 1 and "AssertionError" in done.stdout, done.stdout + done.stderr


Break = Callable[[pytest.MonkeyPatch, Path], None]


def swap_two_words(_: pytest.MonkeyPatch, bundle: Path) -> None:
    words = (bundle / "vocabulary.txt").read_text().split("\n")
    one, other = words.index("bike"), words.index("rock")
    words[one], words[other] = words[other], words[one]
    (bundle / "vocabulary.txt").write_text("\n".join(words))
    rehash(bundle)


def drop_the_state(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    step = Sessions.step
    monkeypatch.setattr(
        Sessions, "step", lambda self, token, state, *rest: step(self, token, state, *rest)._replace(state=state)
    )


def reset_the_state(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    step = Sessions.step
    monkeypatch.setattr(
        Sessions, "step", lambda self, token, state, *rest: step(self, token, np.zeros_like(state), *rest)
    )


def repeat_the_start(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    step = Sessions.step
    monkeypatch.setattr(Sessions, "step", lambda self, token, *rest: step(self, np.ones_like(token), *rest))


def change_pixels(change: Callable[[Any], Any]) -> Break:
    def break_it(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
        load = caplet.captioner.load_pixels
        monkeypatch.setattr(
            caplet.captioner, "load_pixels", lambda *a, **k: np.ascontiguousarray(change(load(*a, **k)))
        )

    return break_it


def change_a_weight(_: pytest.MonkeyPatch, bundle: Path) -> None:
    model = onnx.load(bundle / "decoder.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "candidate_u":
            tensor.raw_data = bytes(len(tensor.raw_data))
    (bundle / "decoder.onnx").write_bytes(model.SerializeToString())
    rehash(bundle)


BREAKS: dict[str, Break] = {
    "two words of the vocabulary swapped": swap_two_words,
    "state not carried on": drop_the_state,
    "state lost": reset_the_state,
    "previous word not fed back": repeat_the_start,
    "BGR": change_pixels(lambda pixels: pixels[..., ::-1]),
    "darkened": change_pixels(lambda pixels: pixels // 2),
    "weights lost": change_a_weight,
}


def test_unbroken_all_golden_captions_are_the_same(tiny_bundle: Path) -> None:
    assert all(result.same for result in check_golden(Captioner(tiny_bundle)))


@pytest.mark.parametrize("name", BREAKS)
def test_check_notices(name: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    BREAKS[name](monkeypatch, bundle)
    assert not all(result.same for result in check_golden(Captioner(bundle)))
