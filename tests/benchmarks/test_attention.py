"""The measurement of attention chooses and blurs quarters as it says, and counts nouns."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import attention
from caplet import Captioner
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


class Described:
    """A captioner that looks at the upper right quarter, and sees a dog unless the photo is blurred there."""

    bundle = SimpleNamespace(manifest=SimpleNamespace(name="described", width=160, height=160))

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def caption(self, photo: Any) -> SimpleNamespace:
        self.asked.append(photo)
        image = Image.open(photo) if isinstance(photo, Path) else photo
        quarter = np.asarray(image.convert("L").resize((160, 160)))[:80, 80:]
        heat = np.zeros((8, 8), np.float32)
        heat[:4, 4:] = 0.9 / 16
        heat[4:, :4] = 0.1 / 16
        words = ("a", "dog") if quarter.std() > 20 else ("a", "wall")
        return SimpleNamespace(words=words, attention=np.stack([np.full((8, 8), 1 / 64, np.float32), heat]))


def test_a_noun_that_goes_with_its_quarter_is_counted_as_gone(tmp_path: Path) -> None:
    photos = [tmp_path / f"{number}.png" for number in range(3)]
    for number, photo in enumerate(photos[:2]):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (160, 160, 3), np.uint8)).save(photo)
    Image.new("RGB", (160, 160), "grey").save(photos[2])  # a wall, which is not in the list of nouns
    captioner = Described()
    result = attention.measure(captioner, photos)  # type: ignore[arg-type]
    assert (result["photos"], result["nouns"]) == (3, 2)
    assert result["attention_in_most_attended_quarter"] == 90.0
    assert (result["noun_still_said"]["most"], result["noun_still_said"]["least"]) == (0.0, 100.0)
    assert len(captioner.asked) == 3 + 2 * len(attention.WAYS)


def test_the_command_measures_the_dev_photos_of_a_data_set(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tiny_flickr8k(tmp_path / "data")
    assert attention.main([str(data), "--bundle", str(tiny_bundle), "--photos", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    captioner, photos = Captioner(tiny_bundle), [data / f"Flicker8k_Dataset/{n:04d}_square.jpg" for n in (16, 17, 18)]
    words = [word for photo in photos for word in captioner.caption(photo).words]
    assert (result["photos"], result["nouns"]) == (3, sum(word in attention.NOUNS for word in words))
    assert result["nouns"] > 0
    assert all(0 <= share <= 100 for share in result["noun_still_said"].values())
