"""The progress bar of the toolchain: tqdm's, with a lock that leaves nothing behind."""

from __future__ import annotations

import threading
from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):
    """tqdm's bar: on a terminal it is drawn, and removed when it is done; in a pipe there is none."""

    def __init__(self, *arguments: Any, leave: bool = False, **options: Any) -> None:
        super().__init__(*arguments, disable=None, leave=leave, **options)


# tqdm's own lock is for several processes. Where those are not forked, as from Python 3.14 on, its semaphore starts a
# process that watches it, and that complains on standard error when `caplet-export` ends at once after an error.
ProgressBar.set_lock(threading.RLock())
