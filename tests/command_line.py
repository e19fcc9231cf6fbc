"""What the tests of the command share: to call it, to start it, and a terminal to show its progress on."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from caplet.cli import main


def _links_work() -> bool:
    """On Windows they do for administrators and developers alone; other users get an error."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "link"
        try:
            link.symlink_to("nowhere")
        except OSError:
            return False
        return link.is_symlink()


def _needs(there: bool, reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not there, reason=reason)


needs_bytes_in_names = _needs(sys.platform == "linux", "file names are text on this system")
needs_posix_names = _needs(sys.platform != "win32", "no such file names on this system")
needs_devices = _needs(Path("/dev/stdin").exists(), "no /dev on this system")
needs_links = _needs(_links_work(), "no symbolic links for this user")
needs_pipes = _needs(hasattr(os, "mkfifo"), "no named pipes on this system")
needs_set_blocking = _needs(sys.platform != "win32", "pipes block on this system")
needs_preexec = _needs(hasattr(os, "fork"), "no preexec_fn on this system")
needs_shell = _needs(sys.platform != "win32", "no POSIX shell on this system")
needs_signals = _needs(sys.platform != "win32", "processes are sent no such signals on this system")
needs_sparse_files = _needs(sys.platform != "win32", "large files take their room on the disk on this system")
needs_terminals = _needs(hasattr(os, "openpty"), "no terminals to make on this system")


def run(*arguments: Any, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return status, captured.out, captured.err


class Command(subprocess.Popen[bytes]):
    def communicate(self, *arguments: Any, **options: Any) -> tuple[bytes, bytes]:
        """What the command wrote; the messages with the line ends of Linux, the results as they are everywhere."""
        out, err = super().communicate(*arguments, **options)
        return out, err.replace(os.linesep.encode(), b"\n")


def start(*arguments: Any, **options: Any) -> Command:
    command = [sys.executable, "-m", "caplet", *map(str, arguments)]
    if sys.platform != "win32":
        # A shell's background jobs ignore interrupts; if the tests are one, the command would inherit that.
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return Command(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
