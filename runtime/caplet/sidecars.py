"""Captions in text files beside their photos: `cat.txt` for `cat.jpg`, where programs that train on photos look."""

from __future__ import annotations

import os
from pathlib import Path

from caplet.errors import CapletError
from caplet.inputs import Input, is_descriptor
from caplet.output import whole_file


def sidecar_of(photo: str) -> str:
    """The text file of a photo, by its name; photos that differ by nothing but the suffix share one."""
    return f"{os.path.splitext(photo)[0]}.txt"  # noqa: PTH122 - Path refuses some names that are given as photos


class Sidecars:
    """The text files beside the photos of a run, if it is to write any.

    Attributes:
        skipped: how many photos were left to the files that were there already.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self.skipped = 0

    def has(self, photo: str) -> bool:
        """Whether there are such a photo and its text file, whoever wrote that: caplet or a person."""
        return self._wanted and os.path.lexists(sidecar_of(photo)) and os.path.exists(photo)

    def skip(self, photo: Input) -> bool:
        """Whether to leave a photo out, which is counted. What is no photo or a pipe is not left out: that is told."""
        found = photo.problem is None and not photo.piped and self.has(photo.name)
        self.skipped += found
        return found

    def write(self, photo: Input, text: str) -> CapletError | None:
        """Write a caption, if wanted, unless something of that name is there by now; returns what went wrong.

        The file appears whole or not at all: one that was cut off would be taken for a caption ever after.
        """
        if not self._wanted:
            return None
        if photo.contents is not None or is_descriptor(photo.name):
            return CapletError(photo.name, "is a stream, beside which nothing is written", "save it as a file")
        file = Path(sidecar_of(photo.name))
        try:
            if not os.path.lexists(file):
                with whole_file(file) as opened:
                    opened.write(f"{text}\n".encode())
        except OSError as error:
            cause = f"cannot be written ({error.strerror or error})"
            return CapletError(str(file), cause, "check its permissions and the disk")
        return None
