"""A progress line for people: on a terminal only, rewritten a few times a second."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TextIO

_INTERVAL = 0.2  # seconds


class Progress:
    """Counts photos on a terminal: how many, of how many if that is known, how fast."""

    def __init__(self, stream: TextIO | None, total: int | None) -> None:
        """Nothing is shown unless `stream` `shows_progress`. `total` None is an unknown number of photos."""
        self._stream = stream if shows_progress(stream) else None
        self._total = total
        self._started = self._shown = time.monotonic()
        self._done = 0
        self._width = 0

    def advance(self) -> None:
        """Count one more photo as done."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= _INTERVAL:
            self._shown = now
            rate = self._done / (now - self._started)
            total = f"/{self._total}" if self._total is not None else ""
            self._show(f"{self._done}{total} photos, {rate:.1f} a second")

    def clear(self) -> None:
        """Wipe the line, so that a message or the prompt can stand there."""
        if self._width:
            self._show("")

    def _show(self, text: str) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # the terminal is gone, the captions are not
                line = text.ljust(self._width)[: _room(self._stream)]
                self._stream.write("\r" + line + ("" if text else "\r"))
                self._stream.flush()
            self._width = len(text)


def shows_progress(stream: TextIO | None) -> bool:
    """Whether progress is shown on `stream`: it is a terminal, and `TERM` does not call it dumb, as Emacs does, and
    people whose screen reader would read out each state of a line.
    """
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def _room(terminal: TextIO) -> int | None:
    """How long a line may be; None if unknown. One that the terminal wraps could not be overwritten."""
    try:
        columns = os.get_terminal_size(terminal.fileno()).columns
    except (OSError, ValueError):
        return None
    return columns - 1 if columns else None
