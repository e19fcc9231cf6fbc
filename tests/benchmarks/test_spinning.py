"""The comparison of spins asks onnxruntime for what it says, and times every task with each."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest

from benchmarks.spinning import SPINS, main
from caplet import sessions

OPTION = "session.intra_op.spin_duration_us"


def test_every_task_is_timed_with_every_spin(
    tiny_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = onnxruntime.InferenceSession

    def session(path: str, options: onnxruntime.SessionOptions, **rest: object) -> onnxruntime.InferenceSession:
        try:
            asked.append(options.get_session_config_entry(OPTION))
        except Exception:  # onnxruntime's way to say that an option is not set
            asked.append("0")
        return real(path, options, **rest)

    monkeypatch.setattr(sessions.onnxruntime, "InferenceSession", session)
    assert main(["--bundle", str(tiny_bundle), "--photo", str(photos / "cat.jpg"), "--runs", "2"]) == 0
    assert asked == [str(spin) for spin in SPINS for _ in ("encoder", "decoder")]
    printed = json.loads(capsys.readouterr().out)
    for company in ("alone", "beside a busy program"):
        assert set(printed[company]) == {"encoder", "caption", "side by side"}
        for spins in printed[company].values():
            assert list(spins) == [f"{spin} us" for spin in SPINS]
            assert all(taken["ms"] > 0 and taken["cpu_ms"] > 0 for taken in spins.values())
