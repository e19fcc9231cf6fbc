"""Which photos a command line means: files, folders, lists of files, standard input."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, TypeAlias

from caplet.errors import ArgumentError, CapletError, ImageError
from caplet.output import make_blocking

STDIN = "-"
STDIN_DESCRIPTOR = 0
_STDIN_STREAM = "<standard input>"  # for messages about the stream itself, not about a photo on it
SUFFIXES = frozenset(
    """
    .jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .avifs .gif .tif .tiff .bmp .ppm .pgm .pbm .pnm .pfm
    .jp2 .j2k .j2c .jpc .jpf .jpx .heic .heif .hif .jxl
    """.split()  # noqa: SIM905
)
"""Suffixes of files that count as photos in a folder. HEIC needs a package of its own, and JPEG XL is not read at all,
but an error that says so is better than silence."""
_NOT_LOOKED_INTO = frozenset(("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin"))
"""Folders in which Synology, QNAP and Windows keep thumbnails, deleted photos and old copies; in small letters."""
_DESCRIPTOR = re.compile(r"/dev/(std(in|out|err)|fd/\d+)|/proc/[^/]+/fd/\d+")
Identity: TypeAlias = tuple[int, int] | str
_CHUNK = 2**16
_LONGEST_NAME = 3 * 2**15  # bytes; Windows takes the longest paths, of 32,767 characters of up to three bytes


@dataclass(frozen=True)
class Input:
    """A photo to caption, by its name as given or found, and what is wrong with that, if anything.

    A piped photo can be read only once: `with_contents` does that at the photo's turn.
    """

    name: str
    problem: CapletError | None = None
    piped: bool = False
    contents: bytes | None = None

    @property
    def source(self) -> str | bytes:
        """What the captioner takes: the path, or the contents where the photo came by a pipe."""
        return self.name if self.contents is None else self.contents


def matching(given: str) -> list[str]:
    """The names that an argument with wildcards stands for, which Windows leaves to each program; else itself.

    There, no file's name has `*` or `?`, and one may have `[`.
    """
    if sys.platform != "win32" or not {"*", "?"}.intersection(os.path.splitdrive(given)[1]):  # `\\?\C:` is a drive
        return [given]
    from glob import glob

    return sorted(glob(given.replace("[", "[[]"))) or [given]  # noqa: PTH207 - Path would change how names are written


def find_inputs(
    photos: Sequence[str],
    files_from: str | None,
    *,
    null: bool,
    recursive: bool,
    drawings: str | None = None,
    resuming: bool = False,
) -> Iterator[Input]:
    """Every photo, lazily, in the order given; the photos of a folder in the order of their names. None is read yet.

    Args:
        photos: files, folders, "-" for a photo on standard input.
        files_from: a file that lists more files and folders, "-" for standard input; it is opened at once.
        null: names in the list end with a null byte instead of a newline.
        recursive: also search the folders in folders, each once, so that loops of links end.
        drawings: the folder where drawings go, whose files are not photos.
        resuming: photos are recognised by their names, so a name has to mean the same photo each time.

    Raises:
        OSError: the list cannot be read.
        ArgumentError: when resuming, a name may mean another photo each time; one in the list is refused at its turn.
            Also while the list is read: it is UTF-16, or has a name that is longer than any can be.
    """
    if resuming:
        for name in photos:
            if name == STDIN or _is_fleeting(name):
                raise _another_each_time(name)
    listing = None if files_from is None else _open_list(files_from)

    def inputs() -> Iterator[Input]:
        for name in photos:
            yield from [Input(STDIN, piped=True)] if name == STDIN else _expand(name, recursive, drawings)
        if listing is not None:
            with listing:
                for name in _names(listing, null):
                    if resuming and _is_fleeting(name):
                        raise _another_each_time(name)
                    yield from _expand(name, recursive, drawings)

    return inputs()


def with_contents(photo: Input, max_pixels: int) -> Input:
    """The photo as it is; one that comes by a pipe is read, and has its contents, or the problem with them.

    No more is read than a photo of `max_pixels` pixels may be long.
    """
    if not photo.piped:
        return photo
    from caplet.image_source import read_all  # only here: it brings numpy and Pillow

    name = photo.name
    try:
        with _stdin() if name == STDIN else open(name, "rb") as pipe:
            return Input(name, contents=bytes(read_all(pipe, name, max_pixels)))
    except CapletError as error:
        return Input(name, error)
    except OSError as error:
        return Input(name, ImageError(name, f"cannot be read ({error.strerror})", "check its permissions"))


def _stdin() -> contextlib.AbstractContextManager[BinaryIO]:
    if sys.stdin is None:
        raise ImageError(STDIN, "there is no standard input", "give a file, or connect it")
    make_blocking(sys.stdin)
    return contextlib.nullcontext(sys.stdin.buffer)  # which stays open


def status_of(file: str | Path | int) -> os.stat_result | None:
    """What the system says of a file, by path or descriptor; None if there is none, or no file can have that name."""
    try:
        return os.stat(file)
    except (OSError, ValueError):
        return None


def identity(file: str | Path | int) -> Identity | None:
    """What is the same for all names of a file, by path or descriptor. None if there is no file."""
    status = status_of(file)
    return None if status is None else _identity(file, status)


def _identity(file: str | Path | int, status: os.stat_result) -> Identity | None:
    """Device and inode of a file, or its real path where it has no inode: on Windows, some drives number no files, such
    as those of WebDAV and SSHFS. None for a descriptor there.
    """
    if status.st_ino:
        return status.st_dev, status.st_ino
    return None if isinstance(file, int) else os.path.normcase(os.path.realpath(file))


def is_descriptor(name: str) -> bool:
    """Whether a name stands for a file that a process has open, as a shell's `<(...)` does."""
    return _DESCRIPTOR.fullmatch(os.path.normpath(name)) is not None


def _is_fleeting(name: str) -> bool:
    return _is_pipe(name) or is_descriptor(name)


def _another_each_time(name: str) -> ArgumentError:
    return ArgumentError("--resume", f"{name} may be another photo each time", "save it as a file")


def _open_list(files_from: str) -> BufferedReader:
    if files_from != STDIN:
        return open(files_from, "rb")
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), _STDIN_STREAM)
    make_blocking(sys.stdin)
    return open(sys.stdin.fileno(), "rb", closefd=False)


def _names(file: BufferedReader, null: bool) -> Iterator[str]:
    """The names in a list, which may be larger than memory. Bytes that are not UTF-8 become lone surrogates."""
    for number, line in enumerate(_lines(file, null)):
        if number == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # by `>` in Windows PowerShell
            raise ArgumentError("--files-from", "is UTF-16", "save it as UTF-8")
        name = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line  # editors of Windows write one
        if not null:
            name = name.removesuffix(b"\r")
        if name:
            yield name.decode(sys.getfilesystemencoding(), "surrogateescape")  # os.fsdecode raises on Windows


def _lines(file: BufferedReader, null: bool) -> Iterator[bytes]:
    """Each name as soon as all of it can be read: a list may come from a program that is still running."""
    rest = b""
    while chunk := _next_chunk(file):
        *lines, rest = (rest + chunk).split(b"\0" if null else b"\n")
        yield from lines
        if len(rest) > _LONGEST_NAME:
            ends = "null bytes" if null else "newlines"
            raise ArgumentError("--files-from", f"has {len(rest):,} bytes without an end", f"end names with {ends}")
    yield rest


def _next_chunk(file: BufferedReader) -> bytes:
    try:
        return file.read1(_CHUNK)
    except OSError as error:  # which, unlike one of `open`, names no file
        error.filename = file.name if isinstance(file.name, str) else _STDIN_STREAM  # whose name is its number
        raise


def _expand(name: str, recursive: bool, drawings: str | None) -> Iterator[Input]:
    """A file as it is, a folder as the photos in it."""
    if not os.path.isdir(name):
        yield Input(name, piped=_is_pipe(name))
        return
    empty = True
    for found in _photos_in(name, recursive, drawings):
        empty = False
        yield found
    if empty:
        remedy = "" if recursive else "use --recursive for the folders in it"
        yield Input(name, ImageError(name, "a folder without photos", remedy))


def _is_pipe(name: str) -> bool:
    status = status_of(name)
    return status is not None and stat.S_ISFIFO(status.st_mode)


def _photos_in(folder: str, recursive: bool, drawings: str | None) -> Iterator[Input]:
    """The photos of a folder. What is left of each folder waits in a list: folders may nest deeper than calls."""
    visited: set[Identity | None] = set()
    waiting = [_found_in(folder, visited, drawings)]
    while waiting:
        found = next(waiting[-1], None)
        if found is None:
            waiting.pop()
        elif isinstance(found, Input):
            yield found
        elif recursive:
            waiting.append(_found_in(found, visited, drawings))


def _found_in(folder: str, visited: set[Identity | None], drawings: str | None) -> Iterator[Input | str]:
    """In order of names, a folder's photos as inputs and its folders as paths; nothing if it was visited before."""
    try:
        found = _identity(folder, os.stat(folder))
        if found in visited:
            return
        visited.add(found)
        if drawings is not None and identity(drawings) == found:
            yield Input(folder, ImageError(folder, "is where the drawings go", "draw into another folder"))
            return
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield Input(folder, ImageError(folder, f"cannot be listed ({error.strerror})", "check its permissions"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
            if entry.name.lower() not in _NOT_LOOKED_INTO:
                yield entry.path
        elif _is_photo(entry):
            yield Input(entry.path)


def _is_photo(entry: os.DirEntry[str]) -> bool:
    """Whether a file is called like a photo. A link that leads nowhere counts: it is reported, not passed over."""
    if Path(entry.name).suffix.lower() not in SUFFIXES:
        return False
    try:
        return entry.is_file() or not Path(entry.path).exists()
    except OSError:  # a link to itself, or to where nobody may look
        return True
