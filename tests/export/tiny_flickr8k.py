"""A made-up data set in the Flickr8k layout: coloured shapes, and captions that say what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle")


def write_tiny_flickr8k(folder: Path, *, train: int = 16, dev: int = 4, size: tuple[int, int] = (64, 48)) -> Path:
    """Write photos, `Flickr8k.token.txt` and split lists; returns the folder."""
    images = folder / "Flicker8k_Dataset"
    images.mkdir(parents=True)
    lines: list[str] = []
    names: list[str] = []
    for number in range(train + dev):
        colour = list(COLOURS)[number % len(COLOURS)]
        shape = SHAPES[number // len(COLOURS) % len(SHAPES)]
        name = f"{number:04d}_{shape}.jpg"
        image = Image.new("RGB", size, (240, 240, 240))
        box = (10, 6, size[0] - 14, size[1] - 6)
        draw = ImageDraw.Draw(image)
        (draw.rectangle if shape == "square" else draw.ellipse)(box, fill=COLOURS[colour])
        image.save(images / name, quality=90)
        names.append(name)
        lines += [
            f"{name}#0\tA {colour} {shape} on a white wall .",
            f"{name}#1\tThe {shape} is {colour} .",
            f"{name}#2\tA {shape} , painted {colour} , hangs on the wall .",
            f"{name}#3\tThere is a {colour} {shape} .",
            f"{name}#4\tSomebody has painted a {colour} {shape} on a wall .",
        ]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    write_split(folder, "train", names[:train])
    write_split(folder, "dev", names[train:])
    return folder


def write_split(folder: Path, split: str, names: Sequence[str]) -> None:
    """Write a split list."""
    (folder / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{name}\n" for name in names))
