"""Control groups (Linux): where the limits of this process are written, such as a container's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def control_groups(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """Version (1 or 2) and folder of this process's control group and of every group around it.

    Args:
        controller: whose limits are wanted: `cpu`, `memory`.
        root: the root of the file system, where /proc and /sys are.
    """
    # A group's name may hold any byte but "/", which stands between groups, and the newline, which ends the line.
    for line in os.fsdecode(_read(root / "proc/self/cgroup")).split("\n"):
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers == "":  # version 2, alone or beside version 1
            version, mounts = 2, [".", "unified"]
        elif controller in controllers.split(","):
            version, mounts = 1, list(dict.fromkeys([controllers, controller]))
        else:
            continue
        # In a container the group is often not visible, but the mount is.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for mount in mounts:
            for length in range(len(parts), -1, -1):
                yield version, root.joinpath("sys/fs/cgroup", mount, *parts[:length])


def read_limit(path: Path) -> str:
    """The contents of a file there; empty if there is none: another version of control groups, or none at all."""
    return _read(path).decode("ascii", "replace")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
