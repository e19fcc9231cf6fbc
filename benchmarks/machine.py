"""The machine and its software, as far as they bear on a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_BUSY_SECONDS = 1.0


def describe_machine() -> dict[str, Any]:
    """Processor, usable threads, memory, system, versions, and how busy the machine is before measuring."""
    from caplet.machine import describe_cpu, versions
    from caplet.threads import usable_threads

    usable = usable_threads()
    return {
        "cpu": describe_cpu(),
        "usable_threads": {"count": usable.count, "reason": usable.reason},
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": platform.platform(),
        "versions": versions(),
        "busy_before": round(busy(), 3),
    }


def busy(stat: Path = Path("/proc/stat")) -> float:
    """Share of the processors' time, 0 to 1, that all programs of this machine take during a second."""

    def times() -> tuple[int, int]:
        # Eight fields; the two after them, of guests, are counted in the first two already.
        fields = [int(field) for field in stat.read_text().splitlines()[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]  # idle, and waiting for disks

    total, idle = times()
    time.sleep(_BUSY_SECONDS)
    total_after, idle_after = times()
    return 1 - (idle_after - idle) / max(total_after - total, 1)


def memory_mb(status: Path = Path("/proc/self/status")) -> dict[str, float]:
    """Resident memory of this process now and at its peak, in MB (10^6 bytes)."""
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {name: int(fields[key].split()[0]) * 1024 / 1e6 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def distributions(imports: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions of these packages, and all that they require, by normalised name."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    providers = importlib.metadata.packages_distributions()
    # With the extra that is asked for, "" for none: torch requires most of CUDA as extras of one package.
    wanted = [(canonicalize_name(providers[name][0]), "") for name in imports if name in providers]
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    while wanted:
        name, extra = wanted.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # the package may work without; else its engine will say so
            continue
        for requirement in map(Requirement, found[name].requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted += [(canonicalize_name(requirement.name), each) for each in ("", *requirement.extras)]
    return found


def installed_mb(imports: Iterable[str]) -> float:
    """Size on disk of packages and all that they require, in MB, including the bytecode that pip compiles."""
    files = {
        Path(str(file.locate()))
        for distribution in distributions(imports).values()
        for file in distribution.files or ()
    }
    return sum(file.stat().st_size for file in files if file.exists()) / 1e6


def disk_mb(paths: Iterable[Path]) -> float:
    """Size of files, and of all files in folders, in MB."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6
