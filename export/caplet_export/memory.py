"""How much memory this process may use: in a container, less than the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes: the machine's memory, or the smallest limit of this process' control groups (Linux) where that is less.

    Args:
        root: the root of the file system, where /proc and /sys are.
    """
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """The limits of this process' control group and of every group around it, version 1 or 2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers == "":  # version 2, alone or beside version 1
            mounts, file = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], "memory.max"
        elif "memory" in controllers.split(","):
            mounts, file = ["sys/fs/cgroup/memory"], "memory.limit_in_bytes"
        else:
            continue
        # In a container the group is often not visible, but the mount is.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for mount in mounts:
            for depth in range(len(parts) + 1):
                limit = _text(root.joinpath(mount, *parts[:depth], file)).strip()
                if limit.isdigit():  # "max" means none
                    yield int(limit)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:  # no such file: another version of control groups, or none at all
        return ""
