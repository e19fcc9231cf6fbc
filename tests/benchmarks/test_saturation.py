"""The comparison of kernels measures what it says, on a float bundle, for which both give the same outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.saturation import main


def test_both_kernels_are_timed_and_compared(
    tiny_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bundle", str(tiny_bundle), "--photo", str(photos / "cat.jpg"), "--runs", "2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["machine"]["cpu"]["architecture"]
    assert [result["threads"] for result in printed["results"]] == [1, 2]
    for result in printed["results"]:
        for graph in ("encoder", "decoder"):
            (exact, slow), (usual, _) = result[graph]["exact"], result[graph]["usual"]
            assert 0 < exact <= slow
            assert result[graph]["usual / exact"] == pytest.approx(usual / exact, rel=0.1, abs=0.01)
            assert result[graph]["same outputs"]
