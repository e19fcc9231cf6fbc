"""Fixtures that every part of the test suite shares."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests that import onnxruntime before caplet report to nobody either
sys.path.insert(0, str(HERE))  # test folders import `tiny_bundle` by name

from tiny_bundle import write_tiny_bundle  # noqa: E402


def pytest_collection_finish() -> None:
    """TensorFlow, once imported, is a million objects, and every collection of garbage would look at each again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where branches are counted, they are the runtime's, and its own tests have to take them: the toolchain's would
    need a third longer.
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
    """What onnxruntime's sessions opened from now on were given for an option, in their order; None where nothing."""
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
