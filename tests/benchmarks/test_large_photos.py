"""The comparison of captions of large JPEGs, on a tiny data set: photos are enlarged, and scored both ways."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from benchmarks import large_photos
from caplet_export.flickr8k import read_dataset
from caplet_export.tokenizer import tokenize
from tiny_flickr8k import write_tiny_flickr8k


def test_photos_are_enlarged_to_twelve_megapixels_in_their_proportions(photos: Path) -> None:
    jpeg = large_photos.enlarge(photos / "cat.jpg")
    with Image.open(photos / "cat.jpg") as before, Image.open(io.BytesIO(jpeg)) as image:
        assert image.width * image.height == pytest.approx(12e6, rel=0.01)
        assert image.width / image.height == pytest.approx(before.width / before.height, rel=0.01)


def test_a_heic_has_a_thumbnail_as_small_as_caplet_reads_one(photos: Path) -> None:
    heic = large_photos.enlarge(photos / "cat.jpg", heic=True)
    with Image.open(io.BytesIO(heic)) as image:
        assert image.width * image.height == pytest.approx(1e6, rel=0.01)
        drafted = image.draft(None, (299, 299))
        assert drafted is not None and min(image.size) == 312


@pytest.mark.parametrize("options", [[], ["--heic"]])
def test_both_ways_are_scored(
    tiny_bundle: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tiny_flickr8k(tmp_path / "data")
    assert large_photos.main([str(data), "--bundle", str(tiny_bundle), "--photos", "2", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["photos"] == 2 and 0 <= result["same_captions"] <= 2
    assert result["caplet"].keys() == result["pillow"].keys() >= {"bleu_4", "cider_d"}
    low, high = result["cider_d_difference"]
    assert low <= high


def test_captions_of_the_file_are_compared_with_those_of_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a captioner that gives a person's words for a file, and for pixels the same except for the last photo."""
    data = write_tiny_flickr8k(tmp_path / "data")
    dataset = read_dataset(data)
    right = [tokenize(dataset.captions[name][0]) for name in dataset.split("dev")[:3]]
    of_files, of_pixels = iter(right), iter([*right[:2], ["nothing"]])

    class Partial:
        bundle = SimpleNamespace(manifest=SimpleNamespace(name="partial", width=16, height=16))

        def __init__(self, bundle: Path | None) -> None:
            pass

        def caption(self, photo: Any) -> SimpleNamespace:
            return SimpleNamespace(words=next(of_files if isinstance(photo, bytes) else of_pixels))

    monkeypatch.setattr(large_photos, "Captioner", Partial)
    result = large_photos.compare(data, None, 3)
    assert result["same_captions"] == 2
    assert result["caplet"]["cider_d"] > result["pillow"]["cider_d"]
    assert result["cider_d_difference"][1] > 0
