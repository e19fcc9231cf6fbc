"""Whether attention falls on the thing: quarters are chosen and blurred as said, and nouns counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import attention
from tiny_flickr8k import write_tiny_flickr8k


def test_quarters_hold_most_and_least_of_the_attention() -> None:
    heat = np.full((8, 8), 0.001, np.float32)
    heat[5:7, 1:3] = 0.2
    heat[0, 4] = 0.0
    quarters = attention.windows(heat, np.random.default_rng(0))
    y, x = quarters["most"]
    assert heat[y : y + 4, x : x + 4].sum() == pytest.approx(0.8 + 0.012)
    y, x = quarters["least"]
    assert heat[y : y + 4, x : x + 4].sum() == pytest.approx(0.015)


def test_only_the_quarter_is_blurred() -> None:
    before = np.random.default_rng(0).integers(0, 256, (80, 160, 3), np.uint8)
    after = np.asarray(attention.blur(Image.fromarray(before), (2, 4)))
    inside = np.zeros((80, 160), bool)
    inside[20:60, 80:160] = True
    assert (after[~inside] == before[~inside]).all()
    assert after[inside].std() < before[inside].std() / 8


def test_what_is_counted(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tiny_flickr8k(tmp_path / "data")
    assert attention.main([str(data), "--bundle", str(tiny_bundle), "--photos", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["photos"] == 3 and set(result["noun_still_said"]) == set(attention.WAYS)
    assert all(0 <= share <= 100 for share in result["noun_still_said"].values())
