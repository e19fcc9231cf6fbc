"""Faults made on purpose, each of which `caplet check` has to notice: what passes here would pass on a device too."""

from __future__ import annotations

import shutil
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
