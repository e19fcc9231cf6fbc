"""Fixtures that the tests of the captioner share: it, photos, and their captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from caplet import Captioner
from sample_photos import IN_COLOUR


@pytest.fixture(scope="module")
def captioner(tiny_bundle: Path) -> Captioner:
    return Captioner(tiny_bundle, threads=2)


@pytest.fixture(scope="module")
def paths(photos: Path) -> list[Path]:
    return [photos / f"{name}.jpg" for name in IN_COLOUR]


@pytest.fixture(scope="module")
def texts(captioner: Captioner, paths: list[Path]) -> list[str]:
    found = [captioner.caption(path).text for path in paths]
    assert len(set(found)) == len(found)  # a test that could not tell the photos apart would prove nothing
    return found
