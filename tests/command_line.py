"""What the tests of the command share: to call it, to start it, and a terminal to show its progress on."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from typing import Any

import pytest

from caplet.cli import main

needs_bytes_in_names = pytest.mark.skipif(sys.platform != "linux", reason="file names are text on this system")


def run(*arguments: Any, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "caplet", *map(str, arguments)]
    if sys.platform != "win32":
        # A shell's background jobs ignore interrupts; if the tests are one, the command would inherit that.
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
