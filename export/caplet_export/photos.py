"""Photos of a data set as the runtime sees them, a batch at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from caplet.errors import ImageError
from caplet.image import load_pixels
from caplet_export.flickr8k import Dataset


def photo_batches(
    dataset: Dataset, names: Sequence[str], *, size: tuple[int, int] = (299, 299), batch_size: int = 8, task: str = ""
) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Names and pixels uint8 [N,height,width,3] of photos, read by `caplet.image.load_pixels` when they are needed.

    A photo that cannot be read is named on standard error and left out. Shows progress under the name of the `task`.
    """
    read: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    for name in tqdm(names, desc=task, unit="photo", disable=None, leave=False):
        try:
            pixels.append(load_pixels(dataset.path(name), size=size))
            read.append(name)
        except ImageError as error:
            print(f"left out: {error}", file=sys.stderr)
        if len(read) == batch_size:
            yield read, np.stack(pixels)
            read, pixels = [], []
    if read:
        yield read, np.stack(pixels)
