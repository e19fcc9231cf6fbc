"""How much memory this process may use: in a container, less than the machine has."""

from __future__ import annotations

import os
from pathlib import Path

from caplet.cgroups import control_groups, read_limit

_UNKNOWN = 4 * 2**30
"""The machine's memory in bytes where the system does not tell it: most machines have at least so much."""
_FILES = {1: "memory.limit_in_bytes", 2: "memory.max"}


def usable_memory(root: Path = Path("/")) -> int:
    """In bytes: the machine's memory, or the smallest limit of the process's control groups (Linux) if that is less.

    Args:
        root: the root of the file system, where /proc and /sys are.
    """
    limits = [read_limit(folder / _FILES[version]).strip() for version, folder in control_groups("memory", root)]
    try:
        machine: int = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # type: ignore[attr-defined, unused-ignore]
    except (AttributeError, ValueError):  # Windows has no such function, other systems may not know the number
        machine = _UNKNOWN
    return min([machine, *(int(limit) for limit in limits if limit.isdigit())])  # "max" means none
