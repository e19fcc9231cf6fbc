"""The command without what Windows lacks, as far as that can be taken away; `benchmarks/windows.sh` runs it there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sample_photos import NAMES

fcntl = pytest.importorskip("fcntl")

ON_WINDOWS = """
import os, signal, sys, types
import fcntl, shutil, subprocess, numpy, onnxruntime, PIL.Image  # which find out for themselves where they are

def locking(descriptor, mode, length):
    assert mode == 2
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, 0, os.SEEK_CUR)
    except BlockingIOError as error:
        raise PermissionError(13, "Permission denied") from error

sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("fork", "getuid", "mkfifo", "register_at_fork", "sched_getaffinity", "set_blocking", "sysconf", "uname"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGPIPE", "alarm", "pthread_sigmask"):
    delattr(signal, name)
sys.platform = "win32"

from caplet.cli import command
command()
"""


def on_windows(*arguments: str | Path) -> tuple[int, str, str]:
    command = [sys.executable, "-c", ON_WINDOWS, *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_photos_are_captioned_and_drawn(photos: Path, tmp_path: Path, texts: dict[str, str]) -> None:
    out = tmp_path / "captions.jsonl"
    arguments = (photos, "--format", "jsonl", "-o", out, "--resume", "--attention", tmp_path / "drawings")
    assert on_windows(*arguments) == (0, "", "")
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:-1]) + lines[-1][:9])
    assert on_windows(*arguments) == (0, "", "")
    captions = [json.loads(line)["caption"] for line in out.read_text().splitlines()]
    assert captions == [texts[name] for name in sorted(NAMES)]
    assert {path.name for path in (tmp_path / "drawings").iterdir()} == {f"{name}.png" for name in NAMES}


def test_wildcards_are_expanded_as_no_shell_does_it_there(photos: Path, tmp_path: Path, texts: dict[str, str]) -> None:
    folder = tmp_path / "[1]"
    folder.mkdir()
    for name in ("rocket", "cat", "coffee"):
        shutil.copy(photos / f"{name}.jpg", folder)
    expected = "".join(f"{folder / name}.jpg\t{texts[name]}\n" for name in ("cat", "coffee"))
    assert on_windows(folder / "c*.jp?") == (0, expected, "")
    status, out, err = on_windows(folder / "*.png", photos / "cat.jpg")
    assert (status, out) == (1, f"{photos / 'cat.jpg'}\t{texts['cat']}\n") and "*.png: no such file" in err


def test_two_runs_do_not_write_one_file(photos: Path, tmp_path: Path, texts: dict[str, str]) -> None:
    out = tmp_path / "captions"
    with out.open("wb") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, 2**31 - 2)
        told = f"caplet: {out}: another caplet is writing to it; wait for it to end, or give another file\n"
        assert on_windows(photos / "cat.jpg", "-o", out) == (1, "", told)
    assert on_windows(photos / "cat.jpg", "-o", out) == (0, "", "")
    assert out.read_text() == f"{texts['cat']}\n"


def test_the_verbs(photos: Path) -> None:
    status, out, err = on_windows("info")
    assert (status, err) == (0, "") and "(CPUs of this machine)" in out
    assert on_windows("check")[::2] == (0, "")
    assert on_windows("bench", photos / "cat.jpg", "--runs", "1")[::2] == (0, "")
