"""Deliberate faults: in the source, which the tests have to notice, and on a device, which `caplet check` has to."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

import caplet.bundle
import caplet.captioner
import caplet.decode
import caplet.image
from caplet import Captioner
from caplet.check_command import check_golden
from caplet.sessions import Sessions
from tiny_bundle import rehash

HERE = Path(__file__).resolve().parent
PHOTOS = HERE.parent / "photos"


def beside(name: str) -> ModuleType:
    """A module of tests in this folder or below, under another name, or pytest would collect its tests here again."""
    specification = importlib.util.spec_from_file_location(f"noticing_{Path(name).name}", HERE / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


bundle_files, captions, pixels, formats = map(
    beside, ("test_bundle_files", "captioner/test_one_photo", "test_image", "test_image_formats")
)


def caption_of_a_cat(bundle: Path, beam_size: int) -> None:
    captioner = Captioner(bundle, threads=1)
    captions.test_captions_are_those_of_the_same_model_in_numpy("cat", beam_size, captioner, PHOTOS)


# Module, code that occurs in it once, what replaces that, and the test that has to notice, given a bundle.
SOURCE_BREAKS: dict[str, tuple[ModuleType, str, str, Callable[[Path], None]]] = {
    "two words of the vocabulary swapped": (
        caplet.bundle,
        "    return words\n",
        "    return (*words[:8], words[9], words[8], *words[10:])\n",
        bundle_files.test_a_whole_bundle_is_read,
    ),
    "state not carried on in greedy search": (
        caplet.decode,
        "        state = result.state[[sentence.rows[-1] for sentence in sentences]]\n",
        "",
        lambda bundle: caption_of_a_cat(bundle, beam_size=1),
    ),
    "state not carried on in beam search": (
        caplet.decode,
        "result.state[[sentence.rows[-1] for sentence in sentences]]",
        "np.zeros_like(result.state[[sentence.rows[-1] for sentence in sentences]])",
        lambda bundle: caption_of_a_cat(bundle, beam_size=3),
    ),
    "state of another hypothesis carried on": (
        caplet.decode,
        "sentence.rows[-1] for",
        "sentence.rows[0] for",
        lambda bundle: caption_of_a_cat(bundle, beam_size=3),
    ),
    "EXIF skipped": (
        caplet.image,
        "        return int(image.getexif().get(_ORIENTATION, 1))\n",
        "        return 1\n",
        lambda _: formats.test_jpeg_orientation_agrees_with_pillow(6, (120, 80)),
    ),
    "BGR": (
        caplet.image,
        "np.array(colours, dtype=np.uint8)",
        "np.array(colours, dtype=np.uint8)[..., ::-1]",
        lambda _: pixels.test_channels_stay_in_order(),
    ),
}


def break_source(module: ModuleType, sound: str, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace `sound` by `broken` in the only function of the module that contains it.

    Only its code object is replaced, since other modules may have imported the function itself.
    """
    assert inspect.getsource(module).count(sound) == 1
    functions = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    (function,) = [each for each in functions if inspect.isfunction(each) and sound in inspect.getsource(each)]
    source = "from __future__ import annotations\n" + inspect.getsource(function).replace(sound, broken)
    namespace = dict(vars(module))
    exec(compile(source, f"broken {function.__name__}", "exec"), namespace)
    monkeypatch.setattr(function, "__code__", namespace[function.__name__].__code__)


@pytest.mark.parametrize("name", SOURCE_BREAKS)
def test_a_test_notices(name: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, sound, broken, notice = SOURCE_BREAKS[name]
    notice(tiny_bundle)
    break_source(module, sound, broken, monkeypatch)
    with pytest.raises(AssertionError):
        notice(tiny_bundle)


Break = Callable[[pytest.MonkeyPatch, Path], None]


def swap_two_words(_: pytest.MonkeyPatch, bundle: Path) -> None:
    words = (bundle / "vocabulary.txt").read_text().split("\n")
    one, other = words.index("bike"), words.index("rock")
    words[one], words[other] = words[other], words[one]
    (bundle / "vocabulary.txt").write_text("\n".join(words), newline="\n")
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
