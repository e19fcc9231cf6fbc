"""Threads without work spin for microseconds only, and not at all where onnxruntime cannot limit them to that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from caplet import Captioner

ALLOWED, DURATION = NAMES = "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us"


@pytest.fixture
def options_asked(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, session_options: Callable[[str], list[str | None]]
) -> Callable[[str], list[dict[str, str | None]]]:
    """The options on spinning that a Captioner gives encoder and decoder with a version of onnxruntime."""

    def asked(version: str) -> list[dict[str, str | None]]:
        monkeypatch.setattr(onnxruntime, "__version__", version)
        Captioner(tiny_bundle)
        given = {name: session_options(name) for name in NAMES}
        return [
            {name: values[session] for name, values in given.items() if values[session] is not None}
            for session in range(len(given[NAMES[0]]))
        ]

    return asked


@pytest.mark.parametrize("version", ["1.26.0", "1.32.1", "2.0.0", "1.30.0.dev20260101+cpu"])
def test_microseconds_where_onnxruntime_can_count_them(
    version: str, options_asked: Callable[[str], list[dict[str, str | None]]]
) -> None:
    captioner = options_asked(version)
    assert len(captioner) == 2
    for asked in captioner:
        assert set(asked) == {DURATION} and 0 < int(asked[DURATION] or 0) <= 50


@pytest.mark.parametrize("version", ["1.17.0", "1.25.1", "1.9", "unknown"])
def test_not_at_all_where_it_would_be_milliseconds(
    version: str, options_asked: Callable[[str], list[dict[str, str | None]]]
) -> None:
    """A version ignores an option that it does not know, and its threads would spin for as long as they like."""
    captioner = options_asked(version)
    assert len(captioner) == 2
    for asked in captioner:
        assert asked == {ALLOWED: "0"}
