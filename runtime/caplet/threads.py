"""How many threads this process may really use, and why.

In a container or under `taskset`, the number of the host's cores is too high: onnxruntime would start a thread for each
core, and these threads would keep waiting for each other.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

from caplet.arguments import whole_number
from caplet.cgroups import control_groups, read_limit

_log = logging.getLogger(__name__)
_MOST_THREADS = 1024
_NUMBER = re.compile(r"0*[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class ThreadCount:
    """Threads to compute with, and what decided it."""

    count: int
    reason: str


def usable_threads(
    asked: SupportsIndex | None = None, *, environ: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> ThreadCount:
    """The number of threads to compute with.

    An explicit number wins. Otherwise it is the smallest of what the scheduler's affinity mask, the control group's
    CPU quota (fractions rounded up) and the environment variable OMP_NUM_THREADS allow.

    Args:
        asked: the caller's number, or None.
        environ: the environment.
        root: the root of the file system, where /proc and /sys are.

    Raises:
        ArgumentError: `asked` is not a whole number from 1 to 1024.
    """
    if asked is not None:
        return ThreadCount(whole_number("threads", asked, _MOST_THREADS), "as asked")
    limits = [_affinity()]
    limits += [ThreadCount(math.ceil(quota), f"CPU quota of {quota:g}") for quota in _quotas(root)]
    limits += _omp_num_threads(environ)
    return min(limits, key=lambda limit: limit.count)


def can_start(count: int) -> bool:
    """Whether the system lets this process have so many threads more, judged by starting them; they end at once."""
    leave = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=leave.wait)
            thread.start()
            started.append(thread)
    except RuntimeError as error:  # or else the interpreter shuts down, which concerns threads of Python's only
        return str(error) != "can't start new thread"
    finally:
        leave.set()
        for thread in started:
            thread.join()
    return True


def _affinity() -> ThreadCount:
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):  # a sandbox may forbid the question
            return ThreadCount(len(os.sched_getaffinity(0)), "CPUs this process may run on")
    return ThreadCount(os.cpu_count() or 1, "CPUs of this machine")


def _omp_num_threads(environ: Mapping[str, str]) -> list[ThreadCount]:
    text = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list has one number per nesting level
    if _NUMBER.fullmatch(text):
        return [ThreadCount(int(text), "OMP_NUM_THREADS")]
    if text:
        _log.warning("OMP_NUM_THREADS=%s is not a number of threads, ignored", text)
    return []


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in CPUs, of this process' control group and of the groups around it."""
    for version, folder in control_groups("cpu", root):
        if version == 2:
            quota, period = [*read_limit(folder / "cpu.max").split(), "", ""][:2]
        else:
            quota, period = (read_limit(folder / f"cpu.cfs_{what}_us").strip() for what in ("quota", "period"))
        # Both in microseconds; "max" and -1 mean no limit.
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
