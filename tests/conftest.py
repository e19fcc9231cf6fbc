"""Fixtures that every part of the test suite shares."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests that import onnxruntime before caplet report to nobody either
sys.path.insert(0, str(HERE))  # test folders import `tiny_bundle` by name

from tiny_bundle import write_tiny_bundle  # noqa: E402


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of free sample photos."""
    return HERE / "photos"


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights, in the bundle format. Read only: copy it to change it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")
