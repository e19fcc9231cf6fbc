"""The comparison of captions of large JPEGs, on a tiny data set: enlarged as said, scored both ways."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import large_photos
from tiny_flickr8k import write_tiny_flickr8k


def test_photos_are_enlarged_to_twelve_megapixels_in_their_proportions(photos: Path) -> None:
    jpeg = large_photos.enlarge(photos / "cat.jpg")
    with Image.open(photos / "cat.jpg") as before, Image.open(io.BytesIO(jpeg)) as image:
        assert image.width * image.height == pytest.approx(12e6, rel=0.01)
        assert image.width / image.height == pytest.approx(before.width / before.height, rel=0.01)


def test_both_ways_are_scored(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tiny_flickr8k(tmp_path / "data")
    assert large_photos.main([str(data), "--bundle", str(tiny_bundle), "--photos", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["photos"] == 2 and 0 <= result["same_captions"] <= 2
    assert result["caplet"].keys() == result["pillow"].keys() >= {"bleu_4", "cider_d"}
    low, high = result["cider_d_difference"]
    assert low <= high
