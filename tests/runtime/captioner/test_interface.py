"""What programs rely on: names and types, what does not change, and a captioner that keeps quiet."""

from __future__ import annotations

import ast
import copy
import dataclasses
import io
import logging
import pickle
import re
import shutil
import subprocess
import sys
import time
import typing
from collections.abc import Generator
from pathlib import Path

import pytest
from PIL import Image

import caplet
from caplet import Caption, Captioner
from caplet.bundle import Bundle
from caplet.image_source import BinaryReader


def test_the_package_has_the_names_it_lists_and_no_others() -> None:
    assert set(dir(caplet)) == set(caplet.__all__)
    assert all(getattr(caplet, name) is not None for name in caplet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = caplet.nothing


def test_types_allow_what_works() -> None:
    result = typing.get_type_hints(Captioner.caption_many)["return"]
    assert typing.get_origin(result) is Generator  # which `contextlib.closing` needs
    assert typing.get_type_hints(BinaryReader.read)["return"] is bytes  # as files and mmaps have it
    assert BinaryReader in typing.get_args(caplet.ImageSource)
    assert typing.get_type_hints(Caption.plot)["return"] is Image.Image  # for tools that read signatures


def test_checkers_of_types_at_run_time_can_check_a_photo() -> None:
    """As beartype and pydantic do, by isinstance."""
    kinds = [typing.get_origin(kind) or kind for kind in typing.get_args(caplet.ImageSource)]
    assert isinstance(io.BytesIO(), tuple(kinds))
    assert not isinstance(None, tuple(kinds))


def test_what_properties_say_is_no_type_to_sphinx() -> None:
    """Its napoleon takes what stands before a colon, in the first line, for a property's type."""
    members = [*vars(Captioner).values(), *vars(Bundle).values()]
    texts = [each.__doc__ for each in members if isinstance(each, property)]
    assert texts
    assert [text for text in texts if text is None or ": " in text.splitlines()[0]] == []


def test_type_checkers_know_the_names_and_errors(tmp_path: Path) -> None:
    """Only these two modules: NumPy's types would take long."""
    pytest.importorskip("mypy")
    (tmp_path / "caplet").mkdir()
    for module in ("__init__", "errors"):
        shutil.copy(Path(caplet.__file__).with_name(f"{module}.py"), tmp_path / "caplet")
    program = tmp_path / "program.py"
    lines = ["import caplet", *(f"caplet.{name}" for name in caplet.__all__), "caplet.Captoner"]
    errors = [name for name in caplet.__all__ if name.endswith("Error")]
    lines += [f"try:\n    print()\nexcept caplet.{name} as error:\n    reveal_type(error)" for name in errors]
    program.write_text("\n".join(lines))
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", program]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert re.findall(r'type is "caplet\.errors\.(.*)"', told) == errors
    assert re.findall(r'error: Module has no attribute "(\w+)"|error:', told) == ["Captoner"]


def test_public_attributes_have_one_type_for_all_checkers() -> None:
    """By name or annotation: of what is unpacked, checkers may infer different types (`pyright --verifytypes`)."""
    unpacked = [
        f"{file.name}:{target.lineno}"
        for file in Path(caplet.__file__).parent.glob("*.py")
        for found in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(found, ast.ClassDef) and not found.name.startswith("_")
        for target in ast.walk(found)
        if isinstance(target, ast.Tuple) and isinstance(target.ctx, ast.Store)
        if any(isinstance(part, ast.Attribute) and not part.attr.startswith("_") for part in target.elts)
    ]
    assert unpacked == []


def test_a_caption_does_not_change(captioner: Captioner, photos: Path) -> None:
    caption = captioner.caption(photos / "cat.jpg")
    with pytest.raises(dataclasses.FrozenInstanceError):
        caption.text = "x"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        caption.attention[0] = 0
    again = captioner.caption(photos / "cat.jpg")
    assert caption == again
    assert hash(caption) == hash(again)
    assert caption != captioner.caption(photos / "rocket.jpg")
    assert pickle.loads(pickle.dumps(caption)) == copy.deepcopy(caption) == caption


def test_a_captioner_does_not_change(captioner: Captioner) -> None:
    for name in ("threads", "bundle", "sessions"):
        with pytest.raises(AttributeError):
            setattr(captioner, name, None)


def test_a_bundle_may_be_a_key_and_is_shown_in_one_line(captioner: Captioner, tiny_bundle: Path) -> None:
    """Its vocabulary and scores, 37 kB in the released model, filled debuggers, notebooks and error messages."""
    bundle, again = captioner.bundle, Captioner(tiny_bundle).bundle
    assert {bundle: 1, bundle.manifest: 2} == {again: 1, again.manifest: 2}
    assert repr(bundle) == f"Bundle(path={bundle.path!r}, digest={bundle.digest!r}, verified=True)"
    with pytest.raises(caplet.ArgumentError, match=re.escape(f"{bundle!r} is not a path")):
        Captioner(bundle)  # type: ignore[arg-type]


def test_silent_until_asked(
    tiny_bundle: Path, photos: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Captioner(tiny_bundle).caption(photos / "cat.jpg")
    assert capfd.readouterr() == ("", "")
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("caplet").handlers)
    with caplog.at_level(logging.DEBUG, logger="caplet"):
        Captioner(tiny_bundle).caption(photos / "cat.jpg")
    assert "loaded tiny-6" in caplog.text
    assert "captioned 1 of 1" in caplog.text


def test_idle_means_idle(captioner: Captioner, photos: Path) -> None:
    captioner.caption(photos / "cat.jpg")
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.02  # spinning threads would have taken 0.5
