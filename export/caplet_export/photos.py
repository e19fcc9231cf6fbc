"""Photos of a data set as the runtime reads them: once, in batches, or again and again while training."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ImageError
from caplet.image import load_pixels
from caplet.threads import usable_threads
from caplet_export.errors import DataError, without_options
from caplet_export.flickr8k import Dataset
from caplet_export.memory import usable_memory
from caplet_export.progress import ProgressBar, tell

_BATCH_SIZE = 8
_SMALL = (8, 8)  # for photos that are read only to find out whether they can be
_MEMORY_SHARE = 0.25
_STORAGE_FAILED = frozenset({
    errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV,
    errno.ENXIO,
})  # fmt: skip
"""Errors of a disk or a network, such as of a Google Drive that Colab has lost."""


def read_photo(dataset: Dataset, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels uint8 [height,width,3] of a photo, squashed to (width, height).

    Raises:
        ImageError: caplet's, if the photo cannot be used.
        DataError: as `check_storage`.
    """
    try:
        return load_pixels(dataset.path(name), size=size)
    except ImageError as error:
        check_storage(dataset, error)
        raise without_options(error) from error


def check_storage(dataset: Dataset, error: ImageError) -> None:
    """Raise a DataError if a photo could not be read because of the disk or the network that it is on: else all photos
    after it would be taken for unreadable, and left out.
    """
    cause = error.__cause__
    if isinstance(cause, OSError) and (cause.errno in _STORAGE_FAILED or not os.path.isdir(dataset.images)):
        advice = "run the command again once it works, or take this photo out of the lists if no other fails"
        raise DataError(f"{error.subject}: {error.cause}: the disk or the network failed; {advice}") from error


def photo_batches(
    dataset: Dataset, names: Sequence[str], *, size: tuple[int, int], task: str
) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Names and pixels uint8 [N,height,width,3] of photos, at `size` (width, height), read as they are needed.

    A photo that cannot be read is named on standard error and left out. Shows progress under the name of the `task`.
    Raises a DataError as `check_storage`.
    """
    read: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    for name in ProgressBar(names, desc=task, unit="photo"):
        try:
            pixels.append(read_photo(dataset, name, size))
            read.append(name)
        except ImageError as error:
            tell(f"left out: {error}")
        if len(read) == _BATCH_SIZE:
            yield read, np.stack(pixels)
            read, pixels = [], []
    if read:
        yield read, np.stack(pixels)


def readable_photos(dataset: Dataset, names: Sequence[str]) -> list[str]:
    """Those of these photos that can be read; each of the others is named on standard error. Raises a DataError as
    `check_storage`.
    """
    return [name for read, _ in photo_batches(dataset, names, size=_SMALL, task="photos") for name in read]


class PhotoCache:
    """Pixels of photos by name, decoded in parallel, and kept as long as they fit into a quarter of memory.

    Args:
        dataset: where the photos are.
        names: the photos that will be asked for; all are read once, to find the unreadable ones.
        size: S; photos are squashed to S×S pixels.

    Attributes:
        unreadable: the reason for each photo that cannot be read, by name.

    Raises:
        DataError: as `check_storage`.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str], size: int) -> None:
        self._dataset, self._size = dataset, (size, size)
        self._pool = ThreadPoolExecutor(usable_threads().count)
        self._room = int(usable_memory() * _MEMORY_SHARE / (size * size * 3))
        self._kept: dict[str, NDArray[np.uint8]] = {}
        found = ProgressBar(self._pool.map(self._problem, names), desc="photos", total=len(names), unit="photo")
        problems = dict(zip(names, found, strict=True))
        self.unreadable = {name: problem for name, problem in problems.items() if problem}

    def readable(self, names: Sequence[str]) -> list[str]:
        """Those of these photos that can be read.

        Raises:
            DataError: there is none.
        """
        names = [name for name in names if name not in self.unreadable]
        if not names:
            raise DataError("not one photo of a split could be read")
        return names

    def load(self, names: Sequence[str]) -> NDArray[np.uint8]:
        """Pixels uint8 [len(names),S,S,3]. Raises as `read_photo`."""
        return np.stack(list(self._pool.map(self._pixels, names)))

    def _pixels(self, name: str) -> NDArray[np.uint8]:
        pixels = self._kept.get(name)
        if pixels is None:
            pixels = read_photo(self._dataset, name, self._size)
            if len(self._kept) < self._room:
                self._kept[name] = pixels
        return pixels

    def _problem(self, name: str) -> str:
        try:
            self._pixels(name)
        except ImageError as error:
            return str(error)
        return ""
