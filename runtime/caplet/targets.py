"""Where the command may write: never over what it reads, over other pictures, or where it looks for photos."""

from __future__ import annotations

import argparse
import os
import re
import stat
from pathlib import Path

from caplet.errors import CapletError
from caplet.inputs import STDIN, STDIN_DESCRIPTOR, SUFFIXES, identity, status_of
from caplet.sidecars import sidecar_of

_STDOUT = 1
_PPM_HEADER = re.compile(rb"P.\s+(#|\d+\s+\d)")


def objection(arguments: argparse.Namespace) -> str | None:
    """Why results may not go where these arguments say; None if they may.

    They may not overwrite what they are made of, or each other, or be taken for photos the next time.
    """
    output, drawings = arguments.output, arguments.attention
    names = (*arguments.photos, arguments.files_from)
    *photos, listing = (STDIN_DESCRIPTOR if name == STDIN else name for name in names)
    if output and any(_same_file(output, photo) for photo in photos):
        return "-o would overwrite a photo"
    if output and _is_picture(output):
        return "-o would overwrite a picture"
    if output and not arguments.resume and _is_binary(output):
        return "-o would overwrite a file that is not text"
    if arguments.resume and os.path.exists(output) and not os.path.isfile(output):
        return "--resume: what -o names is not a file"
    if output and listing is not None and _same_file(output, listing):
        return "-o would overwrite the list of files"
    if output and drawings and _same_target(output, drawings):
        return "-o and --attention are the same file"
    if drawings and not output and os.path.isfile(_STDOUT) and _same_file(drawings, _STDOUT):
        return "--attention is where the results go"
    if drawings and not os.path.isdir(drawings) and any(_same_file(drawings, photo) for photo in photos):
        return "--attention would overwrite a photo"
    if drawings and _holds_something(drawings) and not _is_drawing(drawings):
        return "--attention would overwrite a file that is not a drawing"
    named = [photo for photo in photos if isinstance(photo, str)]
    folders = [photo for photo in named if os.path.isdir(photo)]
    if arguments.sidecar:
        sidecars = [sidecar_of(photo) for photo in named if photo not in folders]
        for option, target in (("-o", output), ("--attention", drawings)):
            if target and any(_same_target(target, sidecar) for sidecar in sidecars):
                return f"{option} is where --sidecar writes a caption"
    if drawings and any(_lies_in(drawings, folder, arguments.recursive) for folder in folders):
        return "--attention would put drawings among the photos"
    return None


def _same_file(one: str, other: str | int) -> bool:
    found = identity(one)
    return found is not None and found == identity(other)


def _same_target(one: str, other: str) -> bool:
    """Whether what is written to both would be in one file, be it there already or not."""
    return _real(one) == _real(other) or _same_file(one, other)


def _real(path: str) -> Path:
    """A path with links resolved; unchanged if it is relative to a folder that is gone."""
    try:
        return Path(os.path.realpath(path))
    except OSError:
        return Path(path)


def _lies_in(path: str, folder: str, recursive: bool) -> bool:
    inside, outside = _real(path), _real(folder)
    return inside == outside or (recursive and inside.is_relative_to(outside))


def _holds_something(path: str) -> bool:
    """Whether there is a file of that name that is not empty. Pipes and devices do not count."""
    status = status_of(path)
    return status is not None and stat.S_ISREG(status.st_mode) and status.st_size > 0


def _is_picture(path: str) -> bool:
    """Whether there is a picture of that name, judged by its suffix or its first bytes."""
    if Path(path).suffix.lower() in SUFFIXES:
        return os.path.exists(path)
    if not _holds_something(path):
        return False
    from caplet.image_formats import HEAD, identify  # only here: it brings numpy and Pillow

    head = _start(path, HEAD)
    try:
        identify(head, path)
    except CapletError:
        return False
    # BMP and PPM start with two letters, and so may a file of captions that begins with a photo's name: "P1 cat.jpg".
    # A BMP has null bytes, by which `_is_binary` knows it.
    return not head.startswith((b"BM", b"P")) or _PPM_HEADER.match(head) is not None


def _is_binary(path: str) -> bool:
    """Whether there is a file of that name with a null byte near its start, as pictures have that caplet cannot read.

    Results never have one. A photo of a list that can be read only once is known by nothing else.
    """
    return _holds_something(path) and b"\0" in _start(path, 2**16)


def _start(path: str, length: int) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(length)
    except OSError:
        return b""


def _is_drawing(path: str) -> bool:
    from caplet.explain import is_drawing  # only here: it brings numpy and Pillow

    return is_drawing(Path(path))
