"""A file system with the control groups that a test wants."""

from __future__ import annotations

import os
from pathlib import Path


def machine(root: Path, group: str, files: dict[str, str]) -> Path:
    """A made-up file system: `group` is /proc/self/cgroup, `files` are what lies under /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_bytes(os.fsencode(group))
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
