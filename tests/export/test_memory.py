"""Memory that may be used: the machine's, or the smallest limit of the control groups around this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from caplet_export.memory import usable_memory
from made_up_machine import machine

MACHINE = 64 * 2**30


@pytest.fixture(autouse=True)
def a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": MACHINE // 4096}.__getitem__)


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("", {}, MACHINE),
        ("0::/\n", {"memory.max": "1000\n"}, 1000),
        ("0::/\n", {"memory.max": "max\n"}, MACHINE),
        ("0::/jobs/one\n", {"jobs/memory.max": "2000", "jobs/one/memory.max": "3000"}, 2000),
        ("0::/jobs/one\n", {"jobs/memory.max": "max", "jobs/one/memory.max": "3000"}, 3000),
        ("0::/../../out/of/sight\n", {"memory.max": "4000"}, 4000),
        ("4:memory:/jobs\n", {"memory/jobs/memory.limit_in_bytes": "5000"}, 5000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, MACHINE),
        ("5:cpu,cpuacct:/\n", {"memory/memory.limit_in_bytes": "6000"}, MACHINE),
        ("4:memory:/\n0::/a\n", {"memory/memory.limit_in_bytes": "8000", "unified/a/memory.max": "7000"}, 7000),
        ("nonsense\n\n", {}, MACHINE),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, group: str, files: dict[str, str], expected: int) -> None:
    machine(tmp_path, group, files)
    assert usable_memory(tmp_path) == expected


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert usable_memory(tmp_path) == MACHINE


def test_a_system_that_does_not_tell_has_some_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows."""
    monkeypatch.delattr(os, "sysconf")
    assert usable_memory(tmp_path) == 4 * 2**30
