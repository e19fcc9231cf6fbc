"""Standard input, output and error: full, closed, missing, or a program's own."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import caplet.output
from caplet.cli import main
from command_line import (
    needs_bytes_in_names,
    needs_devices,
    needs_pipes,
    needs_preexec,
    needs_set_blocking,
    needs_shell,
    run,
    start,
)
from sample_photos import NAMES

# Standard input.


def test_a_photo_on_standard_input(photos: Path, texts: dict[str, str]) -> None:
    process = start("-", stdin=subprocess.PIPE)
    out, err = process.communicate((photos / "cat.jpg").read_bytes())
    assert (process.returncode, out.decode(), err) == (0, texts["cat"] + "\n", b"")


@pytest.mark.parametrize("drawing", ["seen.png", "./-/seen.png"])
def test_what_is_called_hyphen_is_not_taken_for_standard_input(
    drawing: str, photos: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    if drawing == "seen.png":
        shutil.copy(photos / "rocket.jpg", "-")
    else:
        Path("-").mkdir()
    with (photos / "cat.jpg").open(encoding="latin-1") as photo:
        monkeypatch.setattr(sys, "stdin", photo)
        assert run("-", "--attention", drawing, capfd=capfd) == (0, texts["cat"] + "\n", "")
    assert Path(drawing).is_file()


def test_standard_input_that_is_not_a_photo() -> None:
    process = start("-", "--format", "jsonl", stdin=subprocess.PIPE)
    out, err = process.communicate(b"")
    assert process.returncode == 1
    assert json.loads(out)["path"] == "-"
    assert err == b"caplet: -: is empty; get a complete copy\n"


@needs_set_blocking
@pytest.mark.parametrize("listed", [False, True])
def test_standard_input_that_does_not_block(listed: bool, photos: Path, texts: dict[str, str]) -> None:
    """As Node and ssh may leave it: a read before anything is there finds nothing.

    All holders of a pipe share whether it blocks, so the test sees it when the command makes the pipe block.
    """
    taken, given = os.pipe()
    os.set_blocking(taken, False)
    process = start(*(["--files-from", "-"] if listed else ["-"]), stdin=taken)
    deadline = time.monotonic() + 60
    while not os.get_blocking(taken) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.get_blocking(taken)
    os.close(taken)
    with open(given, "wb") as file:
        file.write(os.fsencode(photos / "cat.jpg") if listed else (photos / "cat.jpg").read_bytes())
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.decode().split("\t")[-1] == texts["cat"] + "\n"


@pytest.mark.parametrize("arguments", [["-"], ["--files-from", "-"]])
def test_no_standard_input_at_all(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as after <&- in a shell
    status, out, err = run(*arguments, capfd=capfd)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "standard input" in err


@pytest.mark.parametrize("name", ["-", pytest.param("pipe", marks=needs_pipes)])
def test_a_pipe_that_cannot_be_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(5, "Input/output error")

    if name == "pipe":
        os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("caplet.inputs.open", lambda *_: Broken(), raising=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Broken()))
    error = f"caplet: {name}: cannot be read (Input/output error); pass it as a file\n"
    assert run(name, capfd=capfd) == (1, "", error)


@needs_pipes
def test_a_pipe_that_cannot_be_opened_costs_no_other_photo_its_caption(
    photos: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("caplet.inputs.open", refuse, raising=False)
    status, out, err = run("pipe", photos / "cat.jpg", capfd=capfd)
    assert (status, out) == (1, f"{photos / 'cat.jpg'}\t{texts['cat']}\n")
    assert err == "caplet: pipe: cannot be read (Permission denied); check its permissions\n"


def test_standard_input_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """At its first bytes if they are no picture's, and otherwise where no picture within the limit could be longer."""

    class Endless(io.RawIOBase):
        def __init__(self, start: bytes) -> None:
            self.start, self.given = start, 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            assert size > 0, "would never end"
            part = self.start if self.given == 0 else bytes(size)
            self.given += len(part)
            return part

    for start, said, most in (  # noqa: F402
        (b"\0" * 64, "not an image", 2**16),
        (b"\xff\xd8\xff" * 30, "longer than 1,848,576 bytes", 2**22),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=(endless := Endless(start)), fileno=lambda: 0))
        status, _, err = run("-", "--max-pixels", "100000", capfd=capfd)
        assert status == 1
        assert said in err
        assert endless.given <= most


def test_a_list_on_standard_input(photos: Path) -> None:
    process = start("--files-from", "-", "--null", stdin=subprocess.PIPE)
    names = b"\0".join(os.fsencode(photos / f"{name}.jpg") for name in NAMES)
    out, _ = process.communicate(names)
    assert process.returncode == 0
    assert [Path(line.split("\t")[0]).stem for line in out.decode().splitlines()] == list(NAMES)


def test_photos_and_lists_are_read_from_this_process_standard_input(
    photos: Path, tmp_path: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "list").write_text(str(photos / "cat.jpg"))
    with (tmp_path / "list").open() as listing, (photos / "cat.jpg").open(encoding="latin-1") as photo:
        for arguments, stream in ((["--files-from", "-"], listing), (["-"], photo)):
            monkeypatch.setattr(sys, "stdin", stream)
            status, out, _ = run(*arguments, capfd=capfd)
            assert (status, out.split("\t")[-1]) == (0, texts["cat"] + "\n")


# Standard output.


def test_a_hyphen_is_standard_output(
    photos: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(photos / "cat.jpg", "-o", "-", capfd=capfd) == (0, texts["cat"] + "\n", "")
    assert not list(tmp_path.iterdir())


@needs_devices
def test_an_open_file_keeps_what_it_held(photos: Path, tmp_path: Path, texts: dict[str, str]) -> None:
    """As with `>> log` in a shell."""
    (tmp_path / "log").write_text("what was here before\n")
    with (tmp_path / "log").open("ab") as log:
        command = [sys.executable, "-m", "caplet", str(photos / "cat.jpg"), "-o", "/dev/stdout"]
        subprocess.run(command, stdout=log, check=True)
    assert (tmp_path / "log").read_text() == f"what was here before\n{texts['cat']}\n"


@needs_set_blocking
def test_standard_output_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    read, written = os.pipe()
    os.set_blocking(written, False)
    with open(read, "rb"), open(written, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        stream.write("by the program that calls main\n")
        with caplet.output.Output():
            pass
        assert os.get_blocking(written)
        os.set_blocking(read, False)  # so that the test fails, and does not wait, if there is nothing
        assert os.read(read, 99) == b"by the program that calls main\n"  # which comes before the captions


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(photos / "cat.jpg", "-o", "/dev/full", capfd=capfd)
    assert (status, err) == (1, "caplet: /dev/full: No space left on device\n")
    os.write(2, b"still there\n")
    assert capfd.readouterr().err == "still there\n"
    with open("/dev/full", "wb") as full:
        process = subprocess.run(
            [sys.executable, "-m", "caplet", str(photos / "cat.jpg")], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert process.returncode == 1
    assert process.stderr == b"caplet: <standard output>: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_on_a_full_disk(option: str) -> None:
    command = [sys.executable, "-m", "caplet", option]
    with open("/dev/full", "wb") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert process.returncode == 1
    assert process.stderr == b"caplet: <standard output>: No space left on device\n"


def test_no_standard_output_at_all(photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    status, _, err = run(photos / "cat.jpg", capfd=capfd)
    assert status == 1
    assert err.startswith("caplet: <standard output>: ")


def test_a_reader_that_leaves(photos: Path) -> None:
    process = start(*[photos / "cat.jpg"] * 500, "--batch-size", 1)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 1


@pytest.mark.parametrize(("piped", "told"), [(True, ""), (False, "caplet: <standard output>: Invalid argument\n")])
def test_a_reader_that_leaves_on_windows(
    piped: bool, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Where writing to its pipe often raises another error (https://github.com/python/cpython/issues/79935)."""

    class Refusing(io.FileIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(
        caplet.output, "open", lambda file, *_, **__: Refusing(file, "wb", closefd=False), raising=False
    )
    read, written = os.pipe()
    with open(read, "rb"), open(written, "w") as pipe, open(tmp_path / "out", "w") as file:
        monkeypatch.setattr(sys, "stdout", pipe if piped else file)
        assert main(["--version"]) == 1
    assert capfd.readouterr().err == told


@needs_bytes_in_names
@pytest.mark.parametrize("kind", [io.StringIO, lambda: io.TextIOWrapper(io.BytesIO(), "utf-8")])
def test_results_go_to_a_standard_output_that_is_no_file(
    kind: Callable[[], Any], photos: Path, tmp_path: Path, texts: dict[str, str]
) -> None:
    """As a program has it that calls `main` and keeps what it prints."""
    odd = shutil.copy(photos / "cat.jpg", os.fsdecode(bytes(tmp_path) + b"/\xe9.jpg"))
    with contextlib.redirect_stdout(kind()) as stream:
        assert main([str(photos / "cat.jpg"), odd]) == 0
        assert main(["--version"]) == 0
    stream.seek(0)
    lines = f"{photos / 'cat.jpg'}\t{texts['cat']}\n{tmp_path}/\\xe9.jpg\t{texts['cat']}\n"
    assert stream.read() == f"{lines}caplet {caplet.__version__}\n"


# Standard error.


@needs_shell
@pytest.mark.parametrize("how", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_without_standard_error_the_others_are_captioned_all_the_same(
    how: str, photos: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    cat = photos / "cat.jpg"
    command = f"{sys.executable} -m caplet nowhere.jpg {cat} nowhere.jpg {cat} --batch-size 1 {how}"
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, text=True, check=False)
    assert done.stdout == f"{cat}\t{texts['cat']}\n" * 2  # with no message in between
    assert done.returncode == 1
    subprocess.run(["bash", "-c", command.replace("--batch", f"-o {tmp_path / 'out'} --batch")], check=False)
    assert (tmp_path / "out").read_text() == done.stdout  # the file may have got the descriptor of standard error


def test_a_file_that_got_the_number_of_standard_error_keeps_it(tmp_path: Path) -> None:
    program = """
import os, sys
from caplet.output import Output, quiet_libraries
sys.stderr = None
os.close(2)
with Output(sys.argv[1]) as output, quiet_libraries():
    output.write("a dog runs")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=True)
    assert (tmp_path / "out").read_text() == "a dog runs"


@needs_shell
@pytest.mark.parametrize("how", ["2>&-", "1>&- 2>&-", "2>/dev/full"])
def test_wrong_usage_without_standard_error_prints_nothing(how: str) -> None:
    command = f"{sys.executable} -m caplet --nonsense {how}"
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


def next_descriptor() -> int:
    """The descriptor that the next file gets."""
    with open(os.devnull) as file:
        return file.fileno()


def test_standard_error_stays_what_it_was(
    photos: Path,
    tmp_path: Path,
    texts: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    spare = set()
    with (tmp_path / "log").open("w") as log:
        for stream in (sys.__stderr__, None, log):
            monkeypatch.setattr(sys, "stderr", stream)
            status, out, err = run("nowhere.jpg", photos / "cat.jpg", capfd=capfd)
            assert sys.stderr is stream
            assert (status, out) == (1, f"{photos / 'cat.jpg'}\t{texts['cat']}\n")
            assert err.startswith("caplet: nowhere.jpg: ") == (stream is sys.__stderr__)
            os.write(2, b"still there\n")
            assert capfd.readouterr().err == "still there\n"
            spare.add(next_descriptor())
    assert len(spare) == 1  # no file was left open
    assert (tmp_path / "log").read_text().startswith("caplet: nowhere.jpg: ")


def test_what_standard_error_cannot_encode_is_told_all_the_same() -> None:
    out, err = start("é.jpg", env={**os.environ, "PYTHONIOENCODING": "ascii"}).communicate()
    assert (out, err) == (b"", b"caplet: \\xe9.jpg: no such file; check the path\n")


def test_no_photo_is_lost_where_there_is_no_null_device(
    photos: Path,
    tmp_path: Path,
    texts: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Nor is a file made in its place, which root could do in a bare chroot."""
    monkeypatch.setattr(os, "devnull", str(tmp_path / "null"))
    assert main([str(photos / "cat.jpg"), str(tmp_path / "none.jpg")]) == 1
    out, err = capfd.readouterr()
    assert out == f"{photos / 'cat.jpg'}\t{texts['cat']}\n" and "no such file" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="there is always one on Windows")
def test_closed_streams_cost_nothing_where_there_is_no_null_device(photos: Path, texts: dict[str, str]) -> None:
    program = "import os; os.devnull = '/dev/nowhere'; from caplet.cli import command; command()"
    command = f'{sys.executable} -c "{program}" {photos / "cat.jpg"} -o /dev/fd/3 3>&1 <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{texts['cat']}\n")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_what_libraries_say_about_damaged_files_is_not_on_standard_error(
    compression: str, photos: Path, tmp_path: Path
) -> None:
    """Pillow warns through Python, libtiff prints directly."""
    Image.open(photos / "cat.jpg").resize((90, 60)).save(tmp_path / "0.tif", compression=compression)
    content = (tmp_path / "0.tif").read_bytes()
    for number in range(1, 12):
        damaged = bytearray(content)
        for position in range(number * len(content) // 12, len(content), 40):
            damaged[position] ^= 255
        (tmp_path / f"{number}.tif").write_bytes(damaged if number % 2 else content[: -10 * number])
    out, err = start(tmp_path, "--format", "jsonl").communicate()
    errors = [record["error"] for record in map(json.loads, out.splitlines()) if "error" in record]
    assert errors
    assert err.decode() == "".join(f"caplet: {error}\n" for error in errors)


@needs_preexec
def test_what_c_libraries_say_is_not_in_the_results_if_standard_error_is_closed(photos: Path, tmp_path: Path) -> None:
    Image.open(photos / "coffee.jpg").convert("RGB").save(tmp_path / "good.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "good.tif").read_bytes())
    for position in range(2000, 6000, 7):
        content[position] ^= 0x5A
    (tmp_path / "bad.tif").write_bytes(content)
    command = [sys.executable, "-m", "caplet", tmp_path / "bad.tif", photos / "cat.jpg", "--format", "jsonl"]
    subprocess.run(
        [*map(str, command), "-o", str(tmp_path / "out")], preexec_fn=lambda: os.close(2), check=False, timeout=60
    )
    assert len([json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]) == 2


@pytest.mark.parametrize("status", [1, caplet.output.INTERRUPTED])
def test_what_was_printed_before_the_end_is_not_lost(status: int) -> None:
    """For example, what `caplet-export` printed; even without standard error."""
    program = f"""
import sys
from caplet.output import end_process
sys.stderr = None
print("epoch 1")
end_process({status})
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "epoch 1\n")
