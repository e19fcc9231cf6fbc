"""The comparison of spins asks onnxruntime for the spins that it names, and times every task with each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.spinning import SPINS, main

OPTION = "session.intra_op.spin_duration_us"


def test_every_task_is_timed_with_every_spin(
    tiny_bundle: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    session_options: Callable[[str], list[str | None]],
) -> None:
    assert main(["--bundle", str(tiny_bundle), "--photo", str(photos / "cat.jpg"), "--runs", "2"]) == 0
    assert session_options(OPTION) == [str(spin) for spin in SPINS for _ in ("encoder", "decoder")]
    printed = json.loads(capsys.readouterr().out)
    for company in ("alone", "beside a busy program"):
        assert set(printed[company]) == {"encoder", "caption", "side by side"}
        for spins in printed[company].values():
            assert list(spins) == [f"{spin} us" for spin in SPINS]
            assert all(taken["ms"] > 0 and taken["cpu_ms"] > 0 for taken in spins.values())
