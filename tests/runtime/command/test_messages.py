"""What the command says beside its results, and how it ends: errors, usage, progress and interruption."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import caplet.caption_command
from caplet import InferenceError
from caplet.cli import main
from caplet.progress import Progress
from command_line import Terminal, needs_preexec, needs_signals, needs_terminals, run, start
from sample_photos import NAMES

# Photos that fail.


def test_bad_photos_are_reported_and_the_others_captioned(
    photos: Path, tmp_path: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    arguments = [photos / "cat.jpg", tmp_path / "bad.jpg", photos / "rocket.jpg"]
    status, out, err = run(*arguments, capfd=capfd)
    assert status == 1
    assert out == f"{arguments[0]}\t{texts['cat']}\n{arguments[2]}\t{texts['rocket']}\n"
    assert err.startswith(f"caplet: {tmp_path / 'bad.jpg'}: ")
    assert err.count("\n") == 1
    assert run(*arguments, "--quiet", capfd=capfd) == (1, out, "")


def test_fail_fast_stops_at_the_first_that_fails(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [photos / "cat.jpg", "nowhere.jpg", photos / "rocket.jpg", "--format", "jsonl", "--fail-fast"]
    status, out, _ = run(*arguments, capfd=capfd)
    assert status == 1
    assert ["error" in json.loads(line) for line in out.splitlines()] == [False, True]


def test_a_folder_with_broken_photos_keeps_its_order(photos: Path, tmp_path: Path, capfd: Any) -> None:
    total, broken = (2000, 50) if os.environ.get("CAPLET_LONG") == "1" else (200, 5)
    for i in range(total):
        content = (photos / f"{NAMES[i % 4]}.jpg").read_bytes()
        (tmp_path / f"{i:04}.jpg").write_bytes(content[:300] if i % (total // broken) == 3 else content)
    status, out, err = run(tmp_path, "--format", "jsonl", capfd=capfd)
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [Path(record["path"]).name for record in records] == [f"{i:04}.jpg" for i in range(total)]
    assert sum("error" in record for record in records) == err.count("\n") == broken


def test_an_inference_error_names_its_photo(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise InferenceError("decoder", "gives no usable probabilities", "run `caplet check`")

    monkeypatch.setattr("caplet.sessions.Sessions.step", fail)
    status, out, err = run(photos / "cat.jpg", photos / "coffee.jpg", capfd=capfd)
    assert (status, out) == (1, "")
    assert [line.split(": ")[1] for line in err.splitlines()] == [str(photos / "cat.jpg"), str(photos / "coffee.jpg")]
    assert "decoder: gives no usable probabilities; run `caplet check`" in err


# Usage.


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--nonsense"],
        ["--recur", "x"],
        ["a.jpg", "--beam", "0"],
        ["a.jpg", "--beam", "many"],
        ["a.jpg", "--beam", "1000"],
        ["a.jpg", "--threads", "100000"],
        ["a.jpg", "--format", "xml"],
        ["a.jpg", "--resume"],
        ["a.jpg", "--resume", "--format", "jsonl"],
        ["a.jpg", "--resume", "-o", "x"],
        ["a.jpg", "--null"],
        ["-", "-"],
        ["-", "--files-from", "-"],
        ["info", "a.jpg"],
        ["bench", "--runs", "0"],
        ["a.jpg", "--max-pixels", "0"],
        ["a.jpg", "--max-pixels", str(10**20)],
        ["a.jpg", "-o", ""],
        ["a.jpg", "--attention", "-"],
        ["--threads", "1", "info"],
        ["a.jpg", "--attention", ""],
        ["a.jpg", "--model", ""],
        ["--files-from", ""],
        ["a.jpg", "-o", "same.png", "--attention", "same.png"],
        ["a.jpg", "-o", "./same.png", "--attention", "same.png"],
        ["a.jpg", "--resume", "--format", "jsonl", "-o", "-"],
        [".", "--attention", "."],
        ["-r", ".", "--attention", "drawings"],
    ],
)
def test_wrong_usage(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments, capfd=capfd)
    assert (status, out) == (2, "")
    assert err.startswith("caplet") and err.endswith("\n") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_name_at_all_is_wrong_usage(capfd: pytest.CaptureFixture[str]) -> None:
    for words in ([""], ["bench", ""]):
        status, out, err = run(*words, capfd=capfd)
        assert (status, out) == (2, "")
        assert "invalid name value: ''" in err


def test_a_name_taken_for_an_option_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run("-\x1b[31m\n.jpg", capfd=capfd)
    assert (status, out) == (2, "")
    assert err == "caplet: error: unrecognized arguments: -\\x1b[31m\\n.jpg; see caplet --help\n"


def test_an_unknown_option_is_told_without_the_photos_around_it(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run("a.jpg", "--frmat", "json", "b.jpg", "-", "--beem=2", "--", "-c.jpg", capfd=capfd)
    assert (status, out) == (2, "")
    assert err == "caplet: error: unrecognized arguments: --frmat --beem=2; see caplet --help\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["info", "--help"], ["check", "--help"], ["bench", "--help"], ["--version"]]
)
def test_help_and_version(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(*arguments, capfd=capfd)
    assert (status, err) == (0, "")
    assert "caplet" in out


# Progress.


@pytest.mark.parametrize(
    ("options", "kind", "term", "shown"),
    [
        ([], Terminal, "xterm", True),
        (["--quiet"], Terminal, "xterm", False),
        ([], io.StringIO, "xterm", False),
        ([], Terminal, "dumb", False),
    ],
    ids=["", "quiet", "no terminal", "dumb"],
)
def test_progress_is_for_terminals(
    options: list[str],
    kind: type[io.StringIO],
    term: str,
    shown: bool,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("caplet.progress._INTERVAL", 0)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", terminal := kind())
    paths = [str(photos / f"{name}.jpg") for name in NAMES]
    assert main([*paths, "nowhere.jpg", "-o", str(tmp_path / "out"), *options]) == 1
    assert ("5/6 photos" in terminal.getvalue()) == shown
    assert terminal.getvalue().endswith(" \rcaplet: nowhere.jpg: no such file; check the path\n") == shown
    terminal.truncate(0)
    assert main([str(photos), "-o", str(tmp_path / "out"), *options]) == 0
    assert ("5 photos" in terminal.getvalue()) == shown  # the number of photos in a folder is not known beforehand
    assert terminal.getvalue().endswith(" \r") == shown  # the line is wiped


@pytest.mark.parametrize(("error", "said"), [(KeyboardInterrupt(), "interrupted"), (OSError(28, "Full"), "out: Full")])
def test_the_progress_line_is_wiped_before_what_ends_the_run_is_told(
    error: BaseException, said: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = iter(range(3))

    class Filling(io.FileIO):
        def write(self, line: Any, /) -> int:
            if next(room, None) is None:
                raise error
            return super().write(line)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("caplet.output.open", lambda path, *_, **__: Filling(path, "a"), raising=False)
    monkeypatch.setattr("caplet.progress._INTERVAL", 0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert main([str(photos), "-o", "out"]) != 0
    assert "photos, " in terminal.getvalue()
    assert terminal.getvalue().endswith(f" \rcaplet: {said}\n")


@needs_terminals
def test_no_progress_runs_through_captions_on_the_terminal(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way they get there."""
    monkeypatch.setattr("caplet.progress._INTERVAL", 0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    screen, descriptor = os.openpty()
    with open(screen, "rb", buffering=0) as shown, open(descriptor, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        for options in ([], ["-o", os.ttyname(descriptor)]):
            assert main([str(photos), "--beam", "1", *options]) == 0
            os.write(descriptor, b"end\n")
            output = b""
            while not output.endswith(b"end\r\n"):  # the system hands a terminal's output over when it comes to it
                output += shown.read(4096)
            assert output.count(b".jpg\t") == 5
        monkeypatch.undo()
    assert terminal.getvalue() == ""


def test_progress_in_known_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.0, 10.125, 10.25, 10.375, 10.5, 11.0])
    monkeypatch.setattr("caplet.progress.time", SimpleNamespace(monotonic=lambda: next(times)))
    terminal = io.BytesIO()
    monkeypatch.setattr(stream := io.TextIOWrapper(terminal, newline=""), "isatty", lambda: True)
    progress = Progress(stream, 12)
    for _ in range(6):
        progress.advance()
    progress.clear()
    progress.clear()
    shown = ["3/12 photos, 12.0 a second", "5/12 photos, 10.0 a second", "6/12 photos, 6.0 a second ", " " * 25, ""]
    assert terminal.getvalue().decode() == "".join("\r" + line for line in shown)  # only what was flushed is there


@needs_terminals
@pytest.mark.parametrize("columns", [0, 1, 12, 80])
def test_progress_does_not_wrap(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import termios

    monkeypatch.setattr("caplet.progress._INTERVAL", 0)
    screen, descriptor = os.openpty()
    with open(screen, "rb", buffering=0) as shown, open(descriptor, "w") as terminal:
        progress = Progress(terminal, 12)
        progress.advance()  # as long as there is room for
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        for _ in range(10):
            progress.advance()
        progress.clear()
        os.write(descriptor, b"end")
        output = b""
        while not output.endswith(b"end"):  # as above
            output += shown.read(4096)
    wide, *narrow = output.decode().split("\r")[1:]
    assert len(wide) > 20 and narrow[-2:] == [" " * len(narrow[-2]), "end"]
    assert {len(line) for line in narrow[:-1]} == {columns - 1} if 0 < columns < 20 else len(narrow[0]) > 20


def test_a_terminal_that_is_gone_costs_no_caption(
    photos: Path, tmp_path: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(Terminal):
        def write(self, _: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("caplet.progress._INTERVAL", 0)
    monkeypatch.setattr(sys, "stderr", Gone())
    assert main([str(photos / "cat.jpg"), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_text() == texts["cat"] + "\n"


# How it ends.


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "caplet: interrupted\n"),
        (BrokenPipeError(), 1, ""),
        (OSError("odd"), 1, "caplet: input/output: odd\n"),
        (MemoryError(), 1, "caplet: not enough memory; free some, or try --threads 1\n"),
        (RecursionError(), 1, "caplet: what was read is nested too deeply\n"),
    ],
)
def test_how_a_run_ends(
    error: BaseException, status: int, message: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(caplet.caption_command, "run", fail)
    assert run(photos / "cat.jpg", capfd=capfd) == (status, "", message)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ImportError("cannot import name 'get_all_providers'", name="onnxruntime"),
            "onnxruntime cannot be imported (cannot import name 'get_all_providers'); install caplet again",
        ),
        (
            ImportError("libtiff.so: failed to map segment from shared object", name="_imaging"),
            "_imaging cannot be imported (libtiff.so: failed to map segment from shared object); free some memory, or "
            "allow programs on that disk",
        ),
        (  # what onnxruntime says within `ulimit -v 240000`
            ImportError("Exception caught: std::bad_alloc"),
            "a dependency cannot be imported (Exception caught: std::bad_alloc); free some memory",
        ),
        (  # wheels do not bring it, and small containers and NixOS do not have it where they look
            ImportError("libstdc++.so.6: cannot open shared object file: No such file or directory"),
            "a dependency cannot be imported (libstdc++.so.6: cannot open shared object file: No such file or "
            "directory); install that library, or caplet again",
        ),
        (  # as builds of onnxruntime for OpenVINO and Jetson fail with the glibc of Debian 13
            ImportError(
                "_state.so: cannot enable executable stack as shared object requires: Invalid argument", name="_state"
            ),
            "_state cannot be imported (_state.so: cannot enable executable stack as shared object requires: Invalid "
            "argument); install a newer one",
        ),
        (  # as builds of onnxruntime for another JetPack, and any wheel beside conda's older library
            ImportError("libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by _state.so)", name="_state"),
            "_state cannot be imported (libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by _state.so)); "
            "install one that was made for this system",
        ),
        (  # which OpenWrt and Entware have in a package of its own
            ModuleNotFoundError("No module named '_ctypes'", name="_ctypes"),
            "_ctypes cannot be imported (No module named '_ctypes'); install that part of Python",
        ),
        (  # neither Python nor onnxruntime brings Microsoft's C++ library along
            ImportError(
                "DLL load failed while importing _state: The specified module could not be found.", name="_state"
            ),
            "_state cannot be imported (DLL load failed while importing _state: The specified module could not be "
            "found.); install Microsoft's newest Visual C++ Redistributable, or caplet again",
        ),
        (  # as onnxruntime before 1.19 fails with NumPy 2, for which pip lets 1.17 be installed
            ImportError(""),
            "onnxruntime cannot be imported (made for NumPy 1); install a newer one, or numpy<2",
        ),
        (  # as NumPy 2.4 says of kvm64, the processor of many virtual machines
            RuntimeError("NumPy was built with baseline optimizations: \n(X86_V2) but your machine doesn't support:\n"),
            "numpy cannot be imported (NumPy was built with baseline optimizations: (X86_V2) but your machine doesn't "
            "support:); install numpy<2.4",
        ),
    ],
    ids=[
        "broken installation",
        "memory or noexec",
        "memory",
        "library of the system",
        "executable stack",
        "newer system",
        "part of Python",
        "library of Windows",
        "old onnxruntime",
        "old processor",
    ],
)
def test_what_cannot_be_imported_is_told_in_one_line(
    error: Exception, said: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> int:
        raise error

    monkeypatch.setattr(caplet.caption_command, "run", fail)
    assert run(photos / "cat.jpg", capfd=capfd) == (1, "", f"caplet: {said}\n")


def test_an_error_of_the_program_is_not_taken_for_one_of_numpy(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*_: Any) -> int:
        raise RuntimeError("odd")

    monkeypatch.setattr(caplet.caption_command, "run", break_off)
    with pytest.raises(RuntimeError, match="odd"):
        main([str(photos / "cat.jpg")])


@pytest.mark.parametrize("linked", [True, False])  # NumPy 2.2, the last for Python 3.10, raises it without `from`
def test_a_dependency_for_another_python_is_told_without_the_advice_that_numpy_puts_around_it(
    linked: bool, photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def break_off(*_: Any) -> int:
        advice = ImportError("\n\nIMPORTANT: PLEASE READ THIS FOR ADVICE\n\n" + 20 * "words\n")
        try:
            raise ModuleNotFoundError("No module named 'numpy._umath'", name="numpy._umath")
        except ImportError as error:
            if linked:
                raise advice from error
            raise advice  # noqa: B904

    monkeypatch.setattr(caplet.caption_command, "run", break_off)
    told = "caplet: numpy._umath cannot be imported (No module named 'numpy._umath'); install caplet again\n"
    assert run(photos / "cat.jpg", capfd=capfd) == (1, "", told)


@pytest.mark.parametrize("words", [["cat.jpg"], ["info"], ["check"], ["bench"]], ids=lambda words: words[0])
def test_what_pip_leaves_of_onnxruntime_is_told_in_one_line(words: list[str]) -> None:
    """Two builds of it share a folder; uninstalling one takes `__init__.py` from the other."""
    code = """
import sys, types
sys.modules["onnxruntime"] = types.ModuleType("onnxruntime")
from caplet.cli import main
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    told = "cannot import name '__version__' from 'onnxruntime' (unknown location)"
    remedy = "install it again, with pip's --force-reinstall"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"caplet: onnxruntime cannot be imported ({told}); {remedy}\n"


@pytest.mark.parametrize("told", [True, False])
def test_an_import_that_was_interrupted_is_an_interruption(
    told: bool, photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def break_off(*_: Any) -> int:
        if told:
            raise ImportError("initialization failed") from KeyboardInterrupt()
        try:
            raise KeyboardInterrupt
        finally:
            raise ImportError("initialization failed")

    monkeypatch.setattr(caplet.caption_command, "run", break_off)
    assert run(photos / "cat.jpg", capfd=capfd) == (130, "", "caplet: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot wait on Windows")
def test_an_import_that_loses_interruptions_loses_none(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def lose(_: str) -> Any:  # as onnxruntime's C module does
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # to this thread: others, of earlier tests, do not mask it
            time.sleep(0.05)
        return SimpleNamespace(run=lambda _: 0)

    monkeypatch.setattr("caplet.cli.importlib", SimpleNamespace(import_module=lose))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert run(photos / "cat.jpg", capfd=capfd) == (130, "", "caplet: interrupted\n")
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@needs_signals
def test_interrupt_keeps_what_was_done(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{photos / 'cat.jpg'}\n" * 100_000)
    out = tmp_path / "out.jsonl"
    process = start("--files-from", tmp_path / "list", "--format", "jsonl", "-o", out)
    while not out.exists() or out.stat().st_size < 5000:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b"caplet: interrupted\n"
    assert all(json.loads(line)["caption"] for line in out.read_text().splitlines())


def start_with_a_photo_that_hangs(tmp_path: Path, *arguments: Any, stdout: Any = None) -> subprocess.Popen[bytes]:
    """The command, once a worker hangs at hangs.jpg as on a disk that does not answer; nowhere.jpg fails only then."""
    program = f"""
import pathlib, sys, time
import caplet.captioner
from caplet.cli import command
load = caplet.captioner.load_pixels
def load_or_hang(photo, **options):
    if photo == "hangs.jpg":
        pathlib.Path({str(tmp_path / "hangs")!r}).touch()
        time.sleep(60)
    while photo == "nowhere.jpg" and not pathlib.Path({str(tmp_path / "hangs")!r}).exists():
        time.sleep(0.01)
    return load(photo, **options)
caplet.captioner.load_pixels = load_or_hang
command()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments), "--threads", "2"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "hangs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@needs_preexec
def test_an_interrupt_waits_for_no_worker(tmp_path: Path) -> None:
    process = start_with_a_photo_that_hangs(tmp_path, "hangs.jpg")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"caplet: interrupted\n")


@needs_preexec
@pytest.mark.parametrize("reason", ["failure", "reader"])
def test_a_run_that_stops_early_waits_for_no_worker(reason: str, photos: Path, tmp_path: Path) -> None:
    """Because a photo failed, or because nobody reads the results any more."""
    read, written = os.pipe()
    if reason == "reader":
        os.close(read)
    options = ["--format", "jsonl", *(["--fail-fast"] if reason == "failure" else ["--quiet"])]
    batch = ["nowhere.jpg", *[photos / "cat.jpg"] * 7]
    process = start_with_a_photo_that_hangs(tmp_path, *batch, "hangs.jpg", *options, stdout=written)
    os.close(written)
    _, err = process.communicate(timeout=20)
    message = b"" if reason == "reader" else b"caplet: nowhere.jpg: no such file; check the path\n"
    assert (process.returncode, err) == (1, message)
    if reason == "failure":
        os.close(read)
