"""Fixtures that every part of the test suite shares."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # also for tests that import onnxruntime before caplet
os.environ["TERM"] = "xterm"  # which shows progress, wherever the tests run
sys.path.insert(0, str(HERE))  # test folders import `tiny_bundle` by name

from tiny_bundle import write_tiny_bundle  # noqa: E402


def pytest_collection_finish() -> None:
    """An imported TensorFlow is a million objects; unfrozen, every garbage collection would look at each again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Branch coverage is that of the runtime by its own tests and the product's: the toolchain's tests would take a
    third longer with it.
    """
    for item in items:
        if item.path.relative_to(HERE).parts[0] not in ("runtime", "product"):
            item.add_marker("no_cover")


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of free sample photos."""
    return HERE / "photos"


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights, in the bundle format. Read only: copy it to change it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def session_options(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str | None]]:
    """Of each onnxruntime session opened from now on, in order, its value of an option; None where it is not set."""
    import onnxruntime

    opened: list[onnxruntime.SessionOptions] = []
    real = onnxruntime.InferenceSession

    def session(path: str, options: onnxruntime.SessionOptions, **rest: object) -> onnxruntime.InferenceSession:
        opened.append(options)
        return real(path, options, **rest)

    def given(name: str) -> list[str | None]:
        return [_entry(options, name) for options in opened]

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return given


def _entry(options: object, name: str) -> str | None:
    try:
        return str(options.get_session_config_entry(name))  # type: ignore[attr-defined]
    except Exception:  # onnxruntime's way to say that an option is not set
        return None
