"""Threads without work: they may look for some for microseconds, never for long, and not where that cannot be said."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from caplet import Captioner
from caplet import sessions as sessions_module

INTRA, INTER = "session.intra_op.", "session.inter_op."


def options_asked(version: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The options on spinning that a Captioner gives this version of onnxruntime, encoder and decoder."""
    seen: list[dict[str, str]] = []
    real = onnxruntime.InferenceSession
    names = [part + name for part in (INTRA, INTER) for name in ("allow_spinning", "spin_duration_us")]

    def session(path: str, options: onnxruntime.SessionOptions, **rest: object) -> onnxruntime.InferenceSession:
        found: dict[str, str] = {}
        for name in names:
            try:
                found[name] = options.get_session_config_entry(name)
            except Exception:  # onnxruntime's way to say that an option is not set
                continue
        seen.append(found)
        return real(path, options, **rest)

    monkeypatch.setattr(sessions_module.onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(sessions_module.onnxruntime, "__version__", version)
    Captioner(bundle)
    return seen


@pytest.mark.parametrize("version", ["1.26.0", "1.32.1", "2.0.0", "1.30.0.dev20260101+cpu"])
def test_microseconds_where_onnxruntime_can_count_them(
    version: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked in options_asked(version, tiny_bundle, monkeypatch):
        assert 0 < int(asked.pop(INTRA + "spin_duration_us")) <= 50
        assert asked == {INTER + "allow_spinning": "0"}


@pytest.mark.parametrize("version", ["1.17.0", "1.25.1", "1.9", "unknown"])
def test_not_at_all_where_it_would_be_milliseconds(
    version: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that a version does not know is ignored there, and threads would spin as long as they like."""
    for asked in options_asked(version, tiny_bundle, monkeypatch):
        assert asked == {INTRA + "allow_spinning": "0", INTER + "allow_spinning": "0"}
