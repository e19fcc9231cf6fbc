"""Fixtures that the tests of the command share; its model is the tiny one, unless a test gives another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from caplet import Captioner
from sample_photos import NAMES


@pytest.fixture(autouse=True)
def tiny_model(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPLET_MODEL", str(tiny_bundle))


@pytest.fixture(scope="module")
def texts(tiny_bundle: Path, photos: Path) -> dict[str, str]:
    captioner = Captioner(tiny_bundle)
    return {name: captioner.caption(photos / f"{name}.jpg").text for name in NAMES}


@pytest.fixture
def folder(tmp_path: Path, photos: Path) -> Path:
    """b.jpg, a.PNG, a text file, a hidden photo, and photos two folders deep."""
    root = tmp_path / "folder"
    (root / "inner" / "deep").mkdir(parents=True)
    shutil.copy(photos / "cat.jpg", root / "b.jpg")
    Image.open(photos / "rocket.jpg").save(root / "a.PNG")
    (root / "notes.txt").write_text("no photo")
    shutil.copy(photos / "cat.jpg", root / ".hidden.jpg")
    shutil.copy(photos / "coffee.jpg", root / "inner" / "c.jpg")
    shutil.copy(photos / "astronaut.jpg", root / "inner" / "deep" / "d.jpg")
    return root
