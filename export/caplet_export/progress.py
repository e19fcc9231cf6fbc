"""The progress bar of the toolchain: tqdm's, with a lock that leaves nothing behind; and lines beside it."""

from __future__ import annotations

import sys
import threading
from typing import Any

from tqdm import tqdm

from caplet.errors import printable
from caplet.progress import shows_progress


class ProgressBar(tqdm):
    """tqdm's bar: on a terminal it is drawn, and removed when it is done; in a pipe there is none."""

    def __init__(self, *arguments: Any, leave: bool = False, **options: Any) -> None:
        super().__init__(*arguments, disable=not shows_progress(sys.stderr), leave=leave, **options)


# tqdm's own lock is for several processes. Where those are not forked, as from Python 3.14 on, its semaphore starts a
# process that watches it, and that complains on standard error when `caplet-export` ends at once after an error.
ProgressBar.set_lock(threading.RLock())


def tell(line: str) -> None:
    """Write a line on standard error, above the bar if there is one; what it quotes may be any text, as of a file."""
    ProgressBar.write(printable(line), file=sys.stderr)
