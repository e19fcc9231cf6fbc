"""Which photos a command line means: files, folders, lists of files, standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from caplet.errors import CapletError, ImageError

STDIN = "-"
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .avif .gif .tif .tiff .bmp .ppm .pgm .pbm .jp2 .j2k".split()  # noqa: SIM905
)
_LARGEST_STDIN = 512 * 2**20
_CHUNK = 2**16


@dataclass(frozen=True)
class Input:
    """One photo to caption: its name as given or found, or what is wrong with what was given."""

    name: str
    problem: CapletError | None = None
    contents: bytes | None = None

    @property
    def source(self) -> str | bytes:
        """What the captioner takes: the path, or the contents where the photo came by standard input."""
        return self.name if self.contents is None else self.contents


def find_inputs(photos: Sequence[str], files_from: str | None, *, null: bool, recursive: bool) -> Iterator[Input]:
    """Every photo, lazily, in the order given; the photos of a folder in the order of their names.

    Args:
        photos: files, folders, "-" for a photo on standard input.
        files_from: a file that lists more files and folders, "-" for standard input.
        null: names in the list end with a null byte instead of a newline.
        recursive: also the folders in the folders; each once, so that loops of links end.

    Raises:
        OSError: the list cannot be read.
    """
    for name in photos:
        yield from [_from_stdin()] if name == STDIN else _expand(name, recursive)
    if files_from is not None:
        for name in _listed(files_from, null):
            yield from _expand(name, recursive)


def is_folder(name: str) -> bool:
    """Whether there is a folder of that name; False for names that no file can have."""
    return os.path.isdir(name)  # noqa: PTH112 - Path.is_dir raises for names that are too long


def _from_stdin() -> Input:
    contents = sys.stdin.buffer.read(_LARGEST_STDIN + 1) if sys.stdin else b""
    if len(contents) > _LARGEST_STDIN:
        problem = ImageError(STDIN, f"more than {_LARGEST_STDIN >> 20} MiB on standard input", "give a smaller photo")
        return Input(STDIN, problem)
    return Input(STDIN, contents=contents)


def _listed(files_from: str, null: bool) -> Iterator[str]:
    if files_from == STDIN:
        yield from _names(sys.stdin.buffer, null)
    else:
        with open(files_from, "rb") as file:
            yield from _names(file, null)


def _names(file: BinaryIO, null: bool) -> Iterator[str]:
    """The names of a list that may be longer than memory. Bytes that are not UTF-8 survive as they do in Python."""
    end = b"\0" if null else b"\n"
    rest = b""
    for chunk in iter(lambda: file.read(_CHUNK), b""):
        *names, rest = (rest + chunk).split(end)
        yield from (os.fsdecode(_clean(name, null)) for name in names if _clean(name, null))
    if _clean(rest, null):
        yield os.fsdecode(_clean(rest, null))


def _clean(name: bytes, null: bool) -> bytes:
    return name if null else name.removesuffix(b"\r")


def _expand(name: str, recursive: bool) -> Iterator[Input]:
    """A file as it is, a folder as the photos in it."""
    if not is_folder(name):
        yield Input(name)
        return
    empty = True
    for found in _photos_in(name, recursive, set()):
        empty = False
        yield found
    if empty:
        remedy = "" if recursive else "use --recursive for the folders in it"
        yield Input(name, ImageError(name, "a folder without photos", remedy))


def _photos_in(folder: str, recursive: bool, visited: set[tuple[int, int]]) -> Iterator[Input]:
    try:
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield Input(folder, ImageError(folder, f"cannot be listed ({error.strerror})", "check its permissions"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if recursive:
                yield from _photos_in(entry.path, recursive, visited)
        elif Path(entry.name).suffix.lower() in SUFFIXES and (entry.is_file() or entry.is_symlink()):
            yield Input(entry.path)  # a link that leads nowhere too: it is reported as missing, not passed over
