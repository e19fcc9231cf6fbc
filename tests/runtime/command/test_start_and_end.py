"""What the command does at once while it starts, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import caplet.caption_command
import caplet.cli
from caplet import Captioner
from caplet.output import is_watched
from command_line import needs_signals, run
from tiny_bundle import write_tiny_bundle


def test_the_first_photo_is_decoded_while_the_model_is_opened(
    photos: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And while NumPy and onnxruntime are imported, which these tests have done long ago."""
    decoding, decoded = threading.Event(), []
    load, open_model = caplet.caption_command.load_pixels, caplet.cli._open_model

    def load_slowly(photo: Any, **options: Any) -> Any:
        decoding.set()
        decoded.append(photo)
        time.sleep(0.3)
        return load(photo, **options)

    def open_afterwards(arguments: Any) -> Any:
        assert decoding.wait(10)
        return open_model(arguments)

    monkeypatch.setattr(caplet.caption_command, "load_pixels", load_slowly)
    monkeypatch.setattr(caplet.cli, "_open_model", open_afterwards)
    status, out, err = run(photos / "cat.jpg", photos / "rocket.jpg", "--format", "jsonl", capfd=capfd)
    records = [json.loads(line) for line in out.splitlines()]
    assert (status, err, decoded) == (0, "", [str(photos / "cat.jpg")])
    assert [record["caption"] for record in records] == [texts["cat"], texts["rocket"]]
    assert records[0]["milliseconds"] > 300 > records[1]["milliseconds"]  # what was spent before its turn counts


def test_a_model_of_another_size_gets_its_own_pixels(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_bundle(tmp_path / "small", height=40, width=60)
    text = Captioner(model).caption(photos / "cat.jpg").text
    assert run(photos / "cat.jpg", "--model", model, capfd=capfd) == (0, f"{text}\n", "")


@pytest.mark.parametrize("first", ["nowhere.jpg", "broken.jpg", "folder"])
def test_a_first_photo_that_cannot_be_decoded_is_told_once_at_its_turn(
    first: str, photos: Path, folder: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.jpg").write_bytes(b"no photo")
    bad = folder / "empty" if first == "folder" else folder / first
    if first == "folder":
        bad.mkdir()
    status, out, err = run(bad, photos / "cat.jpg", capfd=capfd)
    assert (status, out) == (1, f"{photos / 'cat.jpg'}\t{texts['cat']}\n")
    assert err.startswith(f"caplet: {bad}: ") and err.count("\n") == 1


def test_a_resumed_run_decodes_nothing_that_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = (photos / "cat.jpg", "--format", "jsonl", "-o", tmp_path / "out.jsonl", "--resume")
    (tmp_path / "out.jsonl").touch()
    assert run(*command, capfd=capfd)[0] == 0
    monkeypatch.setattr(caplet.caption_command, "load_pixels", None)
    assert run(*command, capfd=capfd) == (0, "", "")


def test_it_ends_at_once(photos: Path, texts: dict[str, str]) -> None:
    """Without taking the model apart, or waiting for anything: here, for a thread that sleeps."""
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    command = [sys.executable, "-c", f"{program}from caplet.cli import command\ncommand()", str(photos / "cat.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{texts['cat']}\n", "")


@needs_signals
@pytest.mark.parametrize(("process", "status"), [(1, 143), (2, -signal.SIGTERM)])
def test_sigterm_ends_also_the_first_process_of_a_container(process: int, status: int, photos: Path) -> None:
    """The kernel would not end process 1, which has to do it itself."""
    program = f"import os; os.getpid = lambda: {process}; from caplet.cli import command; command()"
    command = [sys.executable, "-c", program, "--files-from", "-", "--batch-size", "1", "--threads", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin and running.stdout
        running.stdin.write(os.fsencode(photos / "cat.jpg") + b"\n")
        running.stdin.flush()
        assert running.stdout.readline()  # it is under way, and waits for the next name
        running.terminate()
        assert running.wait(10) == status


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="no glibc")
@pytest.mark.parametrize(("variable", "accepted"), [("", [1, 1, 1]), ("MALLOC_ARENA_MAX", [])])
def test_freed_memory_is_kept_unless_the_environment_says_how(variable: str, accepted: list[int]) -> None:
    program = """
import ctypes
mallopt, accepted = ctypes.CDLL(None).mallopt, []
ctypes.CDLL = lambda _: type("Library", (), {"mallopt": staticmethod(lambda *call: accepted.append(mallopt(*call)))})
from caplet import cli
cli.end_process = lambda *_, **__: print(accepted)
cli.main = lambda: 0
cli.command()
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {variable: "2"} if variable else {}
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout == f"{accepted}\n"  # 1 is what glibc gives for a number that it accepts


def test_a_python_without_ctypes_is_told_in_one_line(photos: Path) -> None:
    """As one that was built where libffi's headers are missing."""
    program = "import sys; sys.modules['_ctypes'] = None; from caplet.cli import command; command()"
    command = [sys.executable, "-c", program]
    assert subprocess.run([*command, "--version"], capture_output=True, check=False).stdout.startswith(b"caplet ")
    done = subprocess.run([*command, str(photos / "cat.jpg")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("caplet: _ctypes cannot be imported (")


def test_a_profiler_gets_to_say_what_it_found() -> None:
    command = [sys.executable, "-m", "cProfile", "-m", "caplet", "--version"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("caplet ") and "function calls" in told


@pytest.mark.no_cover
def test_what_traces_a_program_is_noticed() -> None:
    for trace in (sys.settrace, sys.setprofile):
        trace(lambda *_: None)
        try:
            assert is_watched()
        finally:
            trace(None)
