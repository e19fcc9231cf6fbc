"""What this machine and its software are, as far as they bear on captions and their speed."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy
import PIL
from onnxruntime import __version__ as onnxruntime_version  # an ImportError where pip has left only a part of it

import caplet

# Instruction sets that decide how fast, and with 8-bit weights also how exactly, onnxruntime computes.
_FEATURES = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8",
    "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of caplet, Python and the packages that caplet needs."""
    return {
        "caplet": caplet.__version__,
        "python": platform.python_version(),
        "onnxruntime": onnxruntime_version,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
    }


def describe_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """System, architecture, name, number of CPUs, and the instruction sets that matter, as far as the system tells."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or a sandbox that hides it
        lines = []
    fields = dict(reversed([(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]))
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        # `platform.processor` asks another program, which on Linux knows no more than the file. On x86, the file has
        # the processor's name, on a Raspberry Pi the board's.
        "name": fields.get("model name", fields.get("Model", "")) if lines else _name_elsewhere(),
        "cpus": os.cpu_count(),
        "features": [feature for feature in _FEATURES if feature in flags],
    }


def _name_elsewhere() -> str:
    """The processor's name on another system than Linux; on Windows, `platform` knows only a family and a model."""
    if sys.platform == "win32":
        import winreg

        with (
            contextlib.suppress(OSError),
            winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key,
        ):
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    return platform.processor()
