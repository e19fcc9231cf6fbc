"""The `caplet` command for photos: inputs, formats, messages and exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import caplet.caption_command
import caplet.explain
import caplet.output
from caplet import Caption, Captioner, ImageNotFoundError, InferenceError
from caplet.cli import main
from caplet.inputs import find_inputs, is_descriptor
from caplet.progress import Progress
from caplet.targets import objection

NAMES = ("astronaut", "cameraman", "cat", "coffee", "rocket")
needs_bytes_in_names = pytest.mark.skipif(sys.platform != "linux", reason="file names are text on this system")


@pytest.fixture(autouse=True)
def tiny_model(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPLET_MODEL", str(tiny_bundle))


@pytest.fixture(scope="module")
def texts(tiny_bundle: Path, photos: Path) -> dict[str, str]:
    captioner = Captioner(tiny_bundle)
    return {name: captioner.caption(photos / f"{name}.jpg").text for name in NAMES}


@pytest.fixture
def folder(tmp_path: Path, photos: Path) -> Path:
    """b.jpg, a.PNG, a text file, a hidden photo, and photos two folders deep."""
    root = tmp_path / "folder"
    (root / "inner" / "deep").mkdir(parents=True)
    shutil.copy(photos / "cat.jpg", root / "b.jpg")
    Image.open(photos / "rocket.jpg").save(root / "a.PNG")
    (root / "notes.txt").write_text("no photo")
    shutil.copy(photos / "cat.jpg", root / ".hidden.jpg")
    shutil.copy(photos / "coffee.jpg", root / "inner" / "c.jpg")
    shutil.copy(photos / "astronaut.jpg", root / "inner" / "deep" / "d.jpg")
    return root


def run(*arguments: Any, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "caplet", *map(str, arguments)]
    # A shell's background jobs ignore interrupts; if the tests are one, the command would inherit that.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


# What is printed.


def test_one_photo_gives_one_line(photos: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(photos / "cat.jpg", capfd=capfd) == (0, texts["cat"] + "\n", "")


def test_several_photos_give_their_paths_too(
    photos: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [photos / f"{name}.jpg" for name in NAMES]
    expected = "".join(f"{path}\t{texts[path.stem]}\n" for path in paths)
    assert run(*paths, "--threads", 1, "--batch-size", 3, capfd=capfd) == (0, expected, "")


def test_jsonl_has_every_field(
    photos: Path, texts: dict[str, str], tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(photos / "cat.jpg", "nowhere.jpg", "--format", "jsonl", capfd=capfd)
    good, bad = map(json.loads, out.splitlines())
    decoding = Captioner(tiny_bundle).bundle.manifest.decoding
    caption = Captioner(tiny_bundle).caption(photos / "cat.jpg")
    assert status == 1
    assert good["path"] == str(photos / "cat.jpg")
    assert good["caption"] == texts["cat"]
    assert good["score"] == pytest.approx(caption.score, abs=1e-5)
    assert [entry["word"] for entry in good["words"]] == list(caption.words)
    assert [entry["log_prob"] for entry in good["words"]] == pytest.approx(caption.word_scores, abs=1e-5)
    assert [entry["caption"] for entry in good["alternatives"]] == [each.text for each in caption.alternatives]
    assert [entry["score"] for entry in good["alternatives"]] == pytest.approx(
        [each.score for each in caption.alternatives], abs=1e-5
    )
    assert good["milliseconds"] > 0
    assert (good["model"], good["model_sha256"]) == ("tiny-6", Captioner(tiny_bundle).bundle.digest)
    assert all(
        (each["beam_size"], each["max_length"]) == (decoding.beam_size, decoding.max_length) for each in (good, bad)
    )
    assert set(bad) == {"path", "model", "model_sha256", "beam_size", "max_length", "error"}
    assert "nowhere.jpg" in bad["error"]
    assert err == f"caplet: {bad['error']}\n"


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_tables_hold_the_same_as_jsonl(form: str, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = (photos / "cat.jpg", "nowhere.jpg", "-q", "--format")
    records = [json.loads(line) for line in run(*arguments, "jsonl", capfd=capfd)[1].splitlines()]
    table = list(
        csv.DictReader(io.StringIO(run(*arguments, form, capfd=capfd)[1]), delimiter="\t" if form == "tsv" else ",")
    )
    assert len(table) == len(records) == 2
    for row, record in zip(table, records, strict=True):
        for field in ("path", "caption", "model", "model_sha256", "error"):
            assert row[field] == record.get(field, "")
    assert float(table[0]["score"]) == records[0]["score"]
    assert table[0]["words"].split()[0] == "{word}={log_prob}".format(**records[0]["words"][0])
    assert (table[1]["score"], table[1]["words"], table[1]["milliseconds"]) == ("", "", "")


@pytest.mark.parametrize("form", ["text", "csv", "tsv", "jsonl"])
def test_a_name_with_a_line_break_stays_one_record(
    form: str, tmp_path: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = 'a\tb\n"c,\\.jpg'
    shutil.copy(photos / "cat.jpg", tmp_path / name)
    status, out, _ = run(tmp_path / name, photos / "cat.jpg", "--format", form, capfd=capfd)
    assert status == 0
    if form == "csv":
        assert next(csv.DictReader(io.StringIO(out)))["path"] == str(tmp_path / name)
    else:
        lines = out.splitlines()[1 if form == "tsv" else 0 :]
        assert len(lines) == 2
    if form == "tsv":
        escaped = lines[0].split("\t")[0]
        assert escaped.replace("\\t", "\t").replace("\\n", "\n").replace("\\\\", "\\") == str(tmp_path / name)
    if form == "jsonl":
        assert json.loads(lines[0])["path"] == str(tmp_path / name)


def test_a_name_does_not_steer_the_terminal(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path / "\x1b[2J\x07\x7f\x9bé.jpg")
    status, out, err = run(tmp_path, capfd=capfd)
    assert (status, err) == (0, "")
    assert out.startswith(f"{tmp_path}/\\x1b[2J\\x07\\x7f\\x9bé.jpg\t")


def test_a_backslash_in_a_name_is_escaped_in_a_table(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path / "a\\tb.jpg")
    monkeypatch.chdir(tmp_path)
    _, out, _ = run("a\\tb.jpg", "--format", "tsv", capfd=capfd)
    assert out.splitlines()[1].split("\t")[0] == "a\\\\tb.jpg"


def test_output_goes_to_a_file(
    photos: Path, tmp_path: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("what was here before")
    assert run(photos / "cat.jpg", "-o", tmp_path / "out", capfd=capfd) == (0, "", "")
    assert (tmp_path / "out").read_text() == texts["cat"] + "\n"


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout on this system")
def test_an_open_file_keeps_what_it_held(photos: Path, tmp_path: Path, texts: dict[str, str]) -> None:
    """As with `>> log` in a shell."""
    (tmp_path / "log").write_text("what was here before\n")
    with (tmp_path / "log").open("ab") as log:
        command = [sys.executable, "-m", "caplet", str(photos / "cat.jpg"), "-o", "/dev/stdout"]
        subprocess.run(command, stdout=log, check=True)
    assert (tmp_path / "log").read_text() == f"what was here before\n{texts['cat']}\n"


def test_search_options_are_those_of_the_library(
    photos: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = Captioner(tiny_bundle).caption(photos / "cat.jpg", beam_size=1, max_length=4)
    _, out, _ = run(photos / "cat.jpg", "--beam", 1, "--max-length", 4, "--format", "jsonl", capfd=capfd)
    assert json.loads(out)["caption"] == expected.text
    assert json.loads(out)["score"] == pytest.approx(expected.score, abs=1e-5)


def test_another_model(photos: Path, tmp_path: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
    words = (model / "vocabulary.txt").read_text().replace("bike\n", "tandem\n")
    (model / "vocabulary.txt").write_text(words)
    status, out, err = run("--model", model, photos / "cat.jpg", capfd=capfd)
    assert (status, out) == (1, "")
    assert err.startswith(f"caplet: {model / 'vocabulary.txt'}: ")
    status, out, _ = run("--model", model, "--no-verify", photos / "cat.jpg", capfd=capfd)
    assert status == 0
    assert "tandem" in out


# What goes in.


def test_a_folder_gives_its_photos_by_name(
    folder: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(folder, capfd=capfd)
    assert out == f"{folder}/a.PNG\t{texts['rocket']}\n{folder}/b.jpg\t{texts['cat']}\n"


def test_a_heic_photo_in_a_folder_is_not_passed_over(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pi_heif", "pillow_heif"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    shutil.copy(photos / "cat.jpg", tmp_path)
    status, out, err = run(tmp_path, capfd=capfd)
    assert (status, out.count("\n"), err.count("\n")) == (1, 1, 1)
    assert "IMG_0001.HEIC: is a HEIC photo" in err and "convert it to JPEG" in err


def test_every_suffix_of_the_formats_counts(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rare = ("avifs", "apng", "hif", "j2c", "jpc", "jpf", "jpx", "mpo", "pfm", "pnm")
    for suffix in rare:
        shutil.copy(photos / "cat.jpg", tmp_path / f"x.{suffix}")
    status, out, _ = run(tmp_path, capfd=capfd)
    assert (status, [line.split("\t")[0] for line in out.splitlines()]) == (
        0,
        [f"{tmp_path}/x.{s}" for s in sorted(rare)],
    )


@pytest.mark.parametrize("listed", [False, True])
def test_recursive_gives_the_folders_in_it_too(
    listed: bool, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text(f"{folder}\n")
    status, out, _ = run("-r", *(["--files-from", tmp_path / "list"] if listed else [folder]), capfd=capfd)
    assert status == 0
    paths = [line.split("\t")[0] for line in out.splitlines()]
    assert paths == [f"{folder}/{name}" for name in ("a.PNG", "b.jpg", "inner/c.jpg", "inner/deep/d.jpg")]


def test_loops_of_links_end(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "inner" / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder / "inner")
    status, out, _ = run("--recursive", folder, capfd=capfd)
    assert status == 0
    assert len(out.splitlines()) == 4  # every photo once


def test_a_link_that_leads_nowhere_is_not_passed_over(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "gone.jpg").symlink_to("nowhere")
    status, out, err = run(folder, capfd=capfd)
    assert (status, len(out.splitlines())) == (1, 2)
    assert "gone.jpg" in err


def test_things_that_are_not_files_are_passed_over(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to(folder / "pipe.jpg")  # opened, it would wait for ever for a writer
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "folder.jpg").mkdir()
    assert run(folder, capfd=capfd)[0] == 0


@pytest.mark.parametrize("options", [[], ["--recursive"]])
def test_a_link_to_itself_costs_the_others_nothing(options: list[str], folder: Path, capfd: Any) -> None:
    (folder / "a.jpg").symlink_to("a.jpg")
    (folder / "loop").symlink_to("loop")
    status, out, err = run(folder, *options, capfd=capfd)
    assert (status, len(out.splitlines())) == (1, 4 if options else 2)
    assert err.startswith(f"caplet: {folder}/a.jpg: cannot be read") and err.count("\n") == 1


def test_folders_may_lie_deeper_than_python_can_call(photos: Path, tmp_path: Path, capfd: Any) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(sys.getrecursionlimit() + 200):
        os.mkdir("a", dir_fd=here)
        deeper = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("deep.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    status, _, err = run("-r", tmp_path, capfd=capfd)
    subprocess.run(["rm", "-r", tmp_path / "a"], check=True)  # too deep for pytest as well
    assert (status, err.count("\n")) == (1, 1)
    assert err.endswith("deep.jpg: is empty; get a complete copy\n")


@pytest.mark.parametrize("options", [[], ["--recursive"]])
def test_a_folder_without_photos_is_an_error_in_its_place(
    options: list[str], tmp_path: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    inputs = [tmp_path / "empty", photos / "cat.jpg", tmp_path / "empty"]
    status, out, _ = run(*inputs, "--format", "jsonl", "-q", *options, capfd=capfd)
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [record["path"] for record in records] == list(map(str, inputs))
    remedy = "" if options else "; use --recursive for the folders in it"
    error = f"{tmp_path / 'empty'}: a folder without photos{remedy}"
    assert [record.get("error") for record in records] == [error, None, error]


def test_a_folder_that_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("caplet.inputs.os.scandir", refuse)  # file modes do not stop root
    status, out, err = run("-r", folder, capfd=capfd)
    assert (status, len(out.splitlines())) == (1, 2)
    assert err == f"caplet: {folder}/inner: cannot be listed (Permission denied); check its permissions\n"


def test_a_photo_on_standard_input(photos: Path, texts: dict[str, str]) -> None:
    process = start("-", stdin=subprocess.PIPE)
    out, err = process.communicate((photos / "cat.jpg").read_bytes())
    assert (process.returncode, out.decode(), err) == (0, texts["cat"] + "\n", b"")


def test_standard_input_that_is_not_a_photo() -> None:
    process = start("-", "--format", "jsonl", stdin=subprocess.PIPE)
    out, err = process.communicate(b"")
    assert process.returncode == 1
    assert json.loads(out)["path"] == "-"
    assert err == b"caplet: -: is empty; get a complete copy\n"


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


def test_standard_output_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    read, written = os.pipe()
    os.set_blocking(written, False)
    with open(read, "rb"), open(written, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        stream.write("by the program that calls main\n")
        caplet.output.Output().close()
        assert os.get_blocking(written)
        os.set_blocking(read, False)  # so that the test fails, and does not wait, if there is nothing
        assert os.read(read, 99) == b"by the program that calls main\n"  # which comes before the captions


def test_a_line_is_written_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a pipe or a full disk takes only a few bytes at a time."""

    class Narrow(io.FileIO):
        def write(self, content: Any) -> int:
            return super().write(content[:5])

    monkeypatch.setattr("caplet.output.open", lambda path, *_, **__: Narrow(path, "ab"), raising=False)
    with caplet.output.Output(str(tmp_path / "out")) as output:
        output.write("a dog runs over é\n")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "a dog runs over é\n"


@pytest.mark.parametrize("arguments", [["-"], ["--files-from", "-"]])
def test_no_standard_input_at_all(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as after <&- in a shell
    status, out, err = run(*arguments, capfd=capfd)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "standard input" in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_photo_in_a_pipe_is_drawn_under_its_name(photos: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "camera")
    process = start(tmp_path / "camera", photos / "cat.jpg", "--attention", tmp_path / "drawings")
    (tmp_path / "camera").write_bytes((photos / "coffee.jpg").read_bytes())
    process.communicate(timeout=60)
    assert sorted(path.name for path in (tmp_path / "drawings").iterdir()) == ["camera.png", "cat.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_photo_in_a_pipe_is_read_once_and_drawn_all_the_same(
    photos: Path, tmp_path: Path, texts: dict[str, str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = start(tmp_path / "pipe", "--attention", tmp_path / "drawing.png")
    (tmp_path / "pipe").write_bytes((photos / "cat.jpg").read_bytes())
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.decode(), err) == (0, texts["cat"] + "\n", b"")
    assert Image.open(tmp_path / "drawing.png").size > (100, 100)


@pytest.mark.parametrize("name", ["-", "pipe"])
def test_a_pipe_that_cannot_be_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(5, "Input/output error")

    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("caplet.inputs.open", lambda *_: Broken(), raising=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Broken()))
    error = f"caplet: {name}: cannot be read (Input/output error); pass it as a file\n"
    assert run(name, capfd=capfd) == (1, "", error)


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

    for start, said, most in (
        (b"\0" * 64, "not an image", 2**16),
        (b"\xff\xd8\xff" * 30, "longer than 1,848,576 bytes", 2**22),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=(endless := Endless(start)), fileno=lambda: 0))
        status, _, err = run("-", "--max-pixels", "100000", capfd=capfd)
        assert status == 1
        assert said in err
        assert endless.given <= most


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("last", [True, False])
def test_a_list_of_files_and_folders(
    end: str, last: bool, folder: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [photos / "cat.jpg", folder, "", photos / "rocket.jpg"]
    (tmp_path / "list").write_bytes(end.join(map(str, names)).encode() + (end.encode() if last else b""))
    null = ["--null"] if end == "\0" else []
    status, out, err = run(photos / "coffee.jpg", "--files-from", tmp_path / "list", *null, capfd=capfd)
    assert (status, err) == (0, "")
    expected = ["coffee.jpg", "cat.jpg", "a.PNG", "b.jpg", "rocket.jpg"]
    assert [Path(line.split("\t")[0]).name for line in out.splitlines()] == expected


def test_photos_and_lists_are_read_from_this_process_standard_input(
    photos: Path, tmp_path: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "list").write_text(str(photos / "cat.jpg"))
    with (tmp_path / "list").open() as listing, (photos / "cat.jpg").open(encoding="latin-1") as photo:
        for arguments, stream in ((["--files-from", "-"], listing), (["-"], photo)):
            monkeypatch.setattr(sys, "stdin", stream)
            status, out, _ = run(*arguments, capfd=capfd)
            assert (status, out.split("\t")[-1]) == (0, texts["cat"] + "\n")


def test_a_list_on_standard_input(photos: Path) -> None:
    process = start("--files-from", "-", "--null", stdin=subprocess.PIPE)
    names = b"\0".join(os.fsencode(photos / f"{name}.jpg") for name in NAMES)
    out, _ = process.communicate(names)
    assert process.returncode == 0
    assert [Path(line.split("\t")[0]).stem for line in out.decode().splitlines()] == list(NAMES)


class Program(io.RawIOBase):
    """A list in pieces, as from a program that watches a folder and goes on; or with an error in between."""

    def __init__(self, *pieces: bytes | OSError, name: str | int = "list") -> None:
        self.name, self._pieces, self.asked = name, iter(pieces), 0

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        self.asked += 1
        piece = next(self._pieces, b"")
        if isinstance(piece, OSError):
            raise piece
        room[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_names_are_taken_as_they_come(end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(b"a" + end, b"b.j", b"pg" + end + b"c")
    monkeypatch.setattr("caplet.inputs.open", lambda *_: io.BufferedReader(program), raising=False)
    found = find_inputs([], "list", null=end == b"\0", recursive=False)
    assert [(photo.name, program.asked) for photo in found] == [("a", 1), ("b.jpg", 3), ("c", 4)]


def test_an_error_is_told_before_the_next_name_comes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As are photos, with one thread and batches of one."""
    (tmp_path / "empty").mkdir()
    names = [tmp_path / "empty", photos / "cat.jpg", tmp_path / "empty"]
    program, asked = Program(*(f"{name}\n".encode() for name in names)), []
    monkeypatch.setattr("caplet.inputs.open", lambda *_: io.BufferedReader(program), raising=False)
    monkeypatch.setattr(caplet.output.Output, "write", lambda *_: asked.append(program.asked))
    options = ["--format", "jsonl", "--quiet", "--batch-size", "1", "--threads", "1"]
    assert main(["--files-from", "list", *options]) == 1
    assert asked[1:] == [1, 2, 3]  # the first was the header


@pytest.mark.parametrize(("name", "told"), [("list", "list"), (0, "<standard input>")])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_photos_before_a_read_error_of_a_list_have_their_results(
    name: str | int,
    told: str,
    threads: int,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    names = f"{photos / 'cat.jpg'}\n{tmp_path / 'empty'}\n".encode()
    program = Program(names, OSError(5, "Input/output error"), name=name)
    monkeypatch.setattr("caplet.inputs.open", lambda *_: io.BufferedReader(program), raising=False)
    status, out, err = run("--files-from", "list", "--format", "jsonl", "--threads", threads, capfd=capfd)
    assert status == 1
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(photos / "cat.jpg"), str(tmp_path / "empty")]
    assert err.splitlines()[1:] == [f"caplet: {told}: Input/output error"]


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_a_name_in_a_list_is_taken_as_it_is(end: bytes, tmp_path: Path) -> None:
    names = [b" a ", b"-", b"caf\xe9.jpg", b"b\r\0c" if end == b"\n" else b"b\nc\r", b"\xef\xbb\xbfd", b"/dev/fd/99999"]
    names += [b"%d" % number for number in range(15_000)]  # more than one read takes
    names.append(b"x" * 4000 + b" ")
    (tmp_path / "list").write_bytes(end.join(names))
    found = list(find_inputs([], str(tmp_path / "list"), null=end == b"\0", recursive=False))
    assert [photo.name.encode("utf-8", "surrogateescape") for photo in found] == names
    assert not any(photo.piped for photo in found)


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev//fd/63", "/dev/shm/../fd/0", "/proc/self/fd/3", "/proc/12/fd/3"])
def test_an_open_file_is_known_by_its_name(name: str) -> None:
    assert is_descriptor(name)
    assert not is_descriptor(f"{name}.jpg") and not is_descriptor(f"photos{name}")


def test_a_list_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("kept")
    status, out, err = run("--files-from", "nowhere.txt", "-o", tmp_path / "out", capfd=capfd)
    assert (status, out, err) == (1, "", "caplet: nowhere.txt: No such file or directory\n")
    assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize("options", [[], ["--null"]])
def test_a_list_whose_names_do_not_end_is_refused(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "list").open("wb") as file:
        file.write(b"x" * 2**20)
    status, out, err = run("--files-from", tmp_path / "list", *options, capfd=capfd)
    assert (status, out) == (2, "")
    assert "without an end" in err and err.count("\n") == 1


@needs_bytes_in_names
@pytest.mark.parametrize("form", ["text", "tsv", "csv", "jsonl"])
def test_names_that_are_not_utf_8_survive(form: str, photos: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe caf\xc3\xa9.jpg"
    shutil.copy(photos / "cat.jpg", name)
    process = start(os.fsdecode(name), tmp_path, "--format", form)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    if form == "jsonl":
        assert [os.fsencode(json.loads(line)["path"]) for line in out.splitlines()] == [name, name]
    else:
        assert out.count(name) == 2


def test_a_photo_called_like_a_verb(photos: Path, tmp_path: Path, monkeypatch: Any, texts: Any, capfd: Any) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path / "info")
    monkeypatch.chdir(tmp_path)
    assert run("./info", capfd=capfd)[1] == texts["cat"] + "\n"
    assert "onnxruntime" in run("info", capfd=capfd)[1]


def test_a_photo_that_starts_with_a_dash(
    photos: Path, tmp_path: Path, monkeypatch: Any, texts: Any, capfd: Any
) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path / "-x.jpg")
    monkeypatch.chdir(tmp_path)
    assert run("--", "-x.jpg", capfd=capfd)[1] == texts["cat"] + "\n"


def test_the_limit_of_pixels_can_be_moved(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    width, height = Image.open(photos / "cat.jpg").size
    status, _, err = run(photos / "cat.jpg", "--max-pixels", width * height - 1, capfd=capfd)
    assert (status, err.count("too large")) == (1, 1)
    more = ("--max-pixels", width * height, "--attention", tmp_path / "drawing.png")
    assert run(photos / "cat.jpg", *more, capfd=capfd)[0] == 0


def test_a_truncated_photo(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "half.jpg").write_bytes((photos / "cat.jpg").read_bytes()[:-4000])
    assert run(tmp_path / "half.jpg", capfd=capfd)[0] == 1
    status, out, _ = run(
        tmp_path / "half.jpg", "--allow-truncated", "--attention", tmp_path / "drawing.png", capfd=capfd
    )
    assert (status, out.count("\n")) == (0, 1)


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


def test_a_photo_is_never_overwritten(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "cat.jpg"
    shutil.copy(photos / "cat.jpg", photo)
    (tmp_path / "link").symlink_to(photo)
    for option in ("-o", "--attention"):
        for target in (photo, tmp_path / "link"):
            assert run(photo, option, target, capfd=capfd)[0] == 2
    assert run(tmp_path, "-o", photo, capfd=capfd)[0] == 2  # nor one found in a folder
    (tmp_path / "list").write_text(f"{photo}\n")
    assert run("--files-from", tmp_path / "list", "-o", tmp_path / "list", capfd=capfd)[0] == 2
    assert (tmp_path / "list").read_text() == f"{photo}\n"
    assert photo.read_bytes() == (photos / "cat.jpg").read_bytes()


NOTHING = {"output": None, "attention": None, "photos": [], "files_from": None, "resume": False, "recursive": False}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"output": "link", "files_from": "list"}, "-o would overwrite the list of files"),
        ({"output": "/dev/stdin", "files_from": "-"}, "-o would overwrite the list of files"),
        ({"output": "list", "attention": "link"}, "-o and --attention are the same file"),
        ({"photos": ["folder"], "attention": "folder"}, "--attention would put drawings among the photos"),
        (
            {"photos": ["folder"], "attention": "folder/new", "recursive": True},
            "--attention would put drawings among the photos",
        ),
        ({"photos": ["folder"], "attention": "folder/new"}, None),
        ({"photos": ["a name with\0"], "output": "list"}, None),
        ({"attention": "/dev/null"}, None),
    ],
    ids=str,
)
def test_one_file_is_not_taken_for_two(
    changes: dict[str, Any], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "list").write_text("cat.jpg\n")
    (tmp_path / "link").hardlink_to("list")
    monkeypatch.setattr("caplet.targets._STDOUT", os.devnull)
    assert objection(argparse.Namespace(**{**NOTHING, **changes})) == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_nothing_is_taken_out_of_a_pipe_for_the_results(photos: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    os.write(pipe, picture := (photos / "cat.jpg").read_bytes()[:4096])
    assert objection(argparse.Namespace(**{**NOTHING, "output": str(tmp_path / "pipe")})) is None
    assert os.read(pipe, 9999) == picture
    os.close(pipe)


def test_an_input_that_is_not_a_picture_is_not_overwritten_either(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "scan").write_bytes(b"what is left of a picture")
    status, _, err = run(tmp_path / "scan", "-o", tmp_path / "scan", capfd=capfd)
    assert status == 2
    assert "-o would overwrite a photo" in err
    assert (tmp_path / "scan").read_bytes() == b"what is left of a picture"


@pytest.mark.parametrize("name", ["IMG1", "p.heic"])
def test_a_picture_is_known_by_its_content(name: str, photos: Path, tmp_path: Path, capfd: Any) -> None:
    picture = tmp_path / name
    picture.write_bytes(b"\0\0\0\x18ftypheic" if name == "p.heic" else (photos / "cat.jpg").read_bytes())
    before = picture.read_bytes()
    (tmp_path / "list").write_text(f"{picture}\n")
    assert run("--files-from", tmp_path / "list", "-o", picture, capfd=capfd)[0] == 2
    assert run(photos / "cat.jpg", "-o", picture, capfd=capfd)[0] == 2
    assert picture.read_bytes() == before


@pytest.mark.parametrize("content", [b"what is left of a picture", b"8BPS\0\1", b"\xff\x0a" + bytes(9)])
@pytest.mark.parametrize("piped", [False, True])
def test_a_listed_photo_that_caplet_cannot_read_is_not_overwritten(
    content: bytes, piped: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Of a list that is read only once, at least if it is no text."""
    (tmp_path / "scan").write_bytes(content)
    (tmp_path / "list").write_text(f"{photos / 'cat.jpg'}\n{tmp_path / 'scan'}\n")
    if piped:
        monkeypatch.setattr(sys, "stdin", (tmp_path / "list").open())
    listing = "-" if piped else tmp_path / "list"
    status, out, err = run("--files-from", listing, "-o", tmp_path / "scan", capfd=capfd)
    if piped and b"\0" not in content:
        assert "cat.jpg\t" in (tmp_path / "scan").read_text()  # nothing tells it from results
    else:
        assert (tmp_path / "scan").read_bytes() == content
        assert (status != 0, out) == (True, "")
        assert "would overwrite a photo of the list" in err or "would overwrite a file that is not text" in err


@pytest.mark.parametrize("content", [b"", b"what is left of a picture"])
def test_a_picture_is_known_by_its_name(content: bytes, photos: Path, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "DAMAGED.JPG").write_bytes(content)
    status, _, err = run(photos / "cat.jpg", "-o", tmp_path / "DAMAGED.JPG", capfd=capfd)
    assert status == 2
    assert "-o would overwrite a picture" in err
    assert (tmp_path / "DAMAGED.JPG").read_bytes() == content
    assert run(photos / "cat.jpg", "-o", tmp_path / "new.jpg", capfd=capfd)[0] == 0  # there is no picture to lose


@pytest.mark.parametrize(
    "picture", [b"P3\n1 1\n255\n9 9 9\n", b"P2 # by hand\n1 1 9 9", b"P5 2 1 255\n\1\2", b"BM\x46\0\0\0\0\0\0\0"]
)
def test_a_picture_that_starts_like_a_caption_is_not_overwritten(
    picture: bytes, photos: Path, tmp_path: Path, capfd: Any
) -> None:
    (tmp_path / "out").write_bytes(picture)
    assert run(photos / "cat.jpg", "-o", tmp_path / "out", capfd=capfd)[0] == 2
    assert (tmp_path / "out").read_bytes() == picture


@pytest.mark.parametrize(
    "text", ["P1000123.JPG\ta dog\n", "P1 cat.jpg\ta dog\n", "P5 2020.jpg\ta dog\n", "BMW.jpg\ta car in a street\n", ""]
)
def test_captions_that_start_like_a_picture_may_be_overwritten(
    text: str, photos: Path, tmp_path: Path, capfd: Any
) -> None:
    (tmp_path / "out").write_text(text)
    assert run(photos / "cat.jpg", "-o", tmp_path / "out", capfd=capfd)[0] == 0


def test_a_hyphen_is_standard_output(
    photos: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(photos / "cat.jpg", "-o", "-", capfd=capfd) == (0, texts["cat"] + "\n", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["info", "--help"], ["check", "--help"], ["bench", "--help"], ["--version"]]
)
def test_help_and_version(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(*arguments, capfd=capfd)
    assert (status, err) == (0, "")
    assert "caplet" in out


def test_a_bad_model_leaves_the_output_alone(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("kept")
    for arguments, status in ((["--model", tmp_path], 1), (["--beam", 17], 2), (["--batch-size", 5000], 2)):
        assert run(photos / "cat.jpg", "-o", tmp_path / "out", *arguments, capfd=capfd)[0] == status
        assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--batch-size", "5000"], 2), (["--max-pixels", "9" * 14], 2), (["--files-from", "nowhere.txt"], 1)],
)
def test_what_is_refused_leaves_nothing_behind(
    arguments: list[str], status: int, photos: Path, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(photos / "cat.jpg", "-o", "new.csv", "--attention", "new/", *arguments, capfd=capfd)[0] == status
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["folder", "folder/none/out", "folder/none/a\nb"])
def test_an_output_that_cannot_be_written(target: str, photos: Path, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "folder").mkdir()
    status, out, err = run(photos / "cat.jpg", "-o", tmp_path / target, capfd=capfd)
    assert (status, out) == (1, "")
    assert err.startswith(f"caplet: {tmp_path / target}: ".replace("a\nb", "a\\nb"))
    assert err.count("\n") == 1


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


@pytest.mark.parametrize("arguments", [["cat.jpg", "-o", "x" * 300 + ".jpg"], [".", "--attention", "loop"]])
def test_targets_that_no_file_can_have(
    arguments: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments, capfd=capfd)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"caplet: {arguments[-1]}: ")


@pytest.mark.skipif(sys.platform != "linux", reason="a folder in use cannot be deleted on every system")
def test_a_current_folder_that_is_gone(photos: Path, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run(photos, "--attention", "out", capfd=capfd) == (1, "", "caplet: out: No such file or directory\n")
    status, _, err = run(photos / "cat.jpg", "--attention", "out.png", capfd=capfd)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("caplet: out.png: ")


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
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(caplet.caption_command, "run", fail)
    assert run(photos / "cat.jpg", capfd=capfd) == (status, "", message)


# Drawings and progress.


def test_attention_of_one_photo_is_a_file(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(photos / "cat.jpg", "--attention", tmp_path / "out.png", capfd=capfd)[0] == 0
    drawing = Image.open(tmp_path / "out.png")
    expected = Captioner().caption(photos / "cat.jpg").plot(photos / "cat.jpg")
    assert drawing.tobytes() == expected.tobytes()


def test_attention_of_several_photos_is_a_folder(photos: Path, tmp_path: Path, folder: Path, capfd: Any) -> None:
    shutil.copy(photos / "rocket.jpg", folder / "inner" / "b.jpg")
    target = tmp_path / "new" / "drawings"
    assert run(photos / "cat.jpg", "x.jpg", "-r", folder, "--attention", target, capfd=capfd)[0] == 1
    names = sorted(path.name for path in target.iterdir())
    assert names == ["a.png", "b-2.png", "b.png", "c.png", "cat.png", "d.png"]


def test_a_drawing_overwrites_drawings_and_nothing_else(photos: Path, tmp_path: Path, capfd: Any) -> None:
    others = PngInfo()
    others.add_text("Software", "another")
    for name in ("cat.png", "b.png"):
        Image.open(photos / "rocket.jpg").save(tmp_path / name, pnginfo=others)
    (tmp_path / "cat-2.png").write_text("notes")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    inputs = [photos / "cat.jpg", tmp_path / "b.png"]
    for _ in range(2):  # the second time over its own drawings
        assert run(*inputs, "--attention", tmp_path, capfd=capfd)[0] == 0
        assert {path.name for path in tmp_path.iterdir()} - {path.name for path in before} == {"cat-3.png", "b-2.png"}
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_drawing_of_one_photo_overwrites_drawings_and_nothing_else(photos: Path, tmp_path: Path, capfd: Any) -> None:
    shutil.copy(photos / "rocket.jpg", tmp_path / "a.jpg")
    (tmp_path / "notes").write_text("notes")
    for name in ("a.jpg", "notes"):
        before = (tmp_path / name).read_bytes()
        assert run(photos / "cat.jpg", "--attention", tmp_path / name, capfd=capfd)[0] == 2
        assert (tmp_path / name).read_bytes() == before
    (tmp_path / "empty").touch()
    for name in ("new.png", "new.png", "empty"):
        assert run(photos / "cat.jpg", "--attention", tmp_path / name, capfd=capfd)[0] == 0


@pytest.mark.parametrize("listed", [False, True])
def test_a_drawing_that_is_captioned_is_not_drawn_over(
    listed: bool, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    drawing = tmp_path / "cat.png"
    assert run(photos / "cat.jpg", "--attention", drawing, capfd=capfd)[0] == 0
    before = drawing.read_bytes()
    (tmp_path / "list").write_text(f"{drawing}\n")
    inputs = ["--files-from", tmp_path / "list"] if listed else [photos / "cat.jpg", drawing]
    assert run(*inputs, "--attention", tmp_path, capfd=capfd)[0] == 0
    assert drawing.read_bytes() == before
    assert (tmp_path / "cat-2.png").exists()


@pytest.mark.parametrize("way", ["list", "link"])
def test_the_folder_of_the_drawings_is_not_searched(
    way: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even if a list names it or a link leads there, which shows only then; other photos get their captions."""
    drawings, links = tmp_path / "drawings", tmp_path / "links"
    drawings.mkdir()
    shutil.copy(photos / "cat.jpg", drawings)
    links.mkdir()
    (links / "there").symlink_to(drawings)
    (tmp_path / "list").write_text(f"{drawings}\n")
    searched = ["--files-from", tmp_path / "list"] if way == "list" else ["--recursive", links]
    status, out, err = run(photos / "cat.jpg", *searched, "--attention", drawings, capfd=capfd)
    assert (status, out.count("\n"), err.count("\n")) == (1, 1, 1)
    assert "is where the drawings go" in err
    assert sorted(path.name for path in drawings.iterdir()) == ["cat.jpg", "cat.png"]


@needs_bytes_in_names
def test_a_long_name_is_cut_for_its_drawing(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inputs = [tmp_path / ("é" * 125 + end) for end in ("aa", "ab")]
    for photo in inputs:
        shutil.copy(photos / "cat.jpg", photo)
    status, out, err = run(*inputs, photos / "cat.jpg", "--attention", tmp_path / "out", capfd=capfd)
    assert (status, out.count("\n"), err) == (0, 3, "")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"é" * 125 + "a.png", "é" * 124 + "-2.png", "cat.png"}


def test_a_drawing_that_cannot_be_written_costs_no_caption(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save = caplet.explain.save_drawing

    def refuse(drawing: Image.Image, path: Path) -> None:
        if path.stem == "cat":
            raise PermissionError(13, "Permission denied", str(path))
        save(drawing, path)

    monkeypatch.setattr("caplet.explain.save_drawing", refuse)
    status, out, err = run(photos, "--attention", tmp_path / "out", capfd=capfd)
    assert (status, out.count("\n")) == (1, len(NAMES))
    drawing = tmp_path / "out" / "cat.png"
    assert err == f"caplet: {drawing}: cannot be written (Permission denied); check its permissions and the disk\n"
    assert len(list((tmp_path / "out").iterdir())) == len(NAMES) - 1


def test_names_that_differ_in_case_or_form_alone_get_two_drawings(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file systems of macOS and Windows take such names for one."""
    inputs = [tmp_path / name for name in ("1/IMG.jpg", "2/img.jpg", "3/caf\u00e9.jpg", "4/cafe\u0301.jpg")]
    for photo in inputs:
        photo.parent.mkdir()
        shutil.copy(photos / "cat.jpg", photo)
    assert run(*inputs, "--attention", tmp_path / "new", capfd=capfd)[0] == 0
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"IMG.png", "img-2.png", "caf\u00e9.png", "cafe\u0301-2.png"}


def test_a_slash_at_the_end_means_a_folder_whatever_the_separator(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("caplet.caption_command.os.sep", "\\")
    assert run(photos / "cat.jpg", "--attention", f"{tmp_path}/new/", capfd=capfd)[0] == 0
    assert (tmp_path / "new" / "cat.png").exists()


def test_half_of_a_surrogate_pair_in_a_name_costs_nothing(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Names on Windows can have one; UTF-8 has no bytes for it."""
    status, out, err = run("\ud800.jpg", photos / "cat.jpg", "--format", "csv", capfd=capfd)
    assert (status, len(out.splitlines())) == (1, 3)
    assert err.startswith("caplet: \\ud800.jpg: ") and err.count("\n") == 1


def test_numbers_do_not_run_into_names(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inputs = [tmp_path / "one" / "x.jpg", tmp_path / "two" / "x.jpg", tmp_path / "x-2.jpg"]
    for photo in inputs:
        photo.parent.mkdir(exist_ok=True)
        shutil.copy(photos / "cat.jpg", photo)
    assert run(*inputs, "--attention", tmp_path / "new", capfd=capfd)[0] == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"x.png", "x-2.png", "x-2-2.png"}


def test_a_photo_that_is_gone_when_it_is_drawn_keeps_its_caption(
    photos: Path, tmp_path: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise ImageNotFoundError("cat.jpg")

    monkeypatch.setattr(Caption, "plot", gone)
    status, out, err = run(photos / "cat.jpg", "--attention", tmp_path / "drawing.png", capfd=capfd)
    assert (status, out, err) == (1, texts["cat"] + "\n", "caplet: cat.jpg: no such file; check the path\n")


def test_attention_of_standard_input_in_a_folder_that_exists(photos: Path, tmp_path: Path) -> None:
    process = start("-", "--attention", tmp_path, stdin=subprocess.PIPE)
    process.communicate((photos / "cat.jpg").read_bytes())
    assert process.returncode == 0
    assert Image.open(tmp_path / "stdin.png").size > (100, 100)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("options", "kind", "shown"),
    [([], Terminal, True), (["--quiet"], Terminal, False), ([], io.StringIO, False)],
    ids=["", "quiet", "no terminal"],
)
def test_progress_is_for_terminals(
    options: list[str],
    kind: type[io.StringIO],
    shown: bool,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("caplet.progress._INTERVAL", 0)
    monkeypatch.setattr(sys, "stderr", terminal := kind())
    paths = [str(photos / f"{name}.jpg") for name in NAMES]
    assert main([*paths, "nowhere.jpg", "-o", str(tmp_path / "out"), *options]) == 1
    assert ("5/6 photos" in terminal.getvalue()) == shown
    assert terminal.getvalue().endswith(" \rcaplet: nowhere.jpg: no such file; check the path\n") == shown
    terminal.truncate(0)
    assert main([str(photos), "-o", str(tmp_path / "out"), *options]) == 0
    assert ("5 photos" in terminal.getvalue()) == shown  # the number of photos in a folder is not known beforehand
    assert terminal.getvalue().endswith(" \r") == shown  # the line is wiped


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


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals to make on this system")
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


@pytest.mark.parametrize(("form", "returns"), [("csv", 1), ("tsv", 0)])
def test_a_name_with_a_carriage_return_stays_one_record(
    form: str, returns: int, tmp_path: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And nothing else has a carriage return: lines end with a newline alone."""
    shutil.copy(photos / "cat.jpg", tmp_path / "a\rb.jpg")
    run(tmp_path / "a\rb.jpg", photos / "cat.jpg", "--format", form, "-o", tmp_path / "out", capfd=capfd)
    with open(tmp_path / "out", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t" if form == "tsv" else ","))
    name = "a\rb.jpg" if form == "csv" else "a\\rb.jpg"
    assert [row["path"] for row in rows] == [str(tmp_path / name), str(photos / "cat.jpg")]
    assert (tmp_path / "out").read_bytes().count(b"\r") == returns


def test_the_photos_before_a_defect_of_a_list_have_their_results(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").write_text(f"{photos / 'cat.jpg'}\n{tmp_path / 'empty'}\n{'x' * 200_000}")
    status, out, err = run("--files-from", tmp_path / "list", "--format", "jsonl", capfd=capfd)
    assert status == 2
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(photos / "cat.jpg"), str(tmp_path / "empty")]
    assert "without photos" in err and "bytes without an end" in err


def test_a_list_with_a_byte_order_mark(
    photos: Path, tmp_path: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text(f"{photos / 'cat.jpg'}\n", encoding="utf-8-sig")
    status, out, err = run("--files-from", tmp_path / "list", capfd=capfd)
    assert (status, out, err) == (0, f"{photos / 'cat.jpg'}\t{texts['cat']}\n", "")


def test_a_list_in_utf_16_is_refused_not_taken_for_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list").write_text("cat.jpg\n", encoding="utf-16")
    status, out, err = run("--files-from", tmp_path / "list", capfd=capfd)
    assert (status, out, err) == (2, "", "caplet: --files-from: is UTF-16; save it as UTF-8\n")


@pytest.mark.parametrize("names", ["a", "a\n", "a\nb", "ab\n", "\na", "\n\n\n"])
def test_the_shortest_lists(
    names: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lists no longer than the byte order mark that is looked for at their start."""
    for name in ("a", "b", "ab"):
        shutil.copy(photos / "cat.jpg", tmp_path / name)
    (tmp_path / "list").write_text(names)
    monkeypatch.chdir(tmp_path)
    status, out, err = run("--files-from", "list", capfd=capfd)
    assert (status, [line.split("\t")[0] for line in out.splitlines()], err) == (0, names.split(), "")


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


def test_a_broken_installation_is_told_in_one_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def break_off(_: Any) -> int:
        raise ImportError("libonnxruntime.so: cannot open shared object file", name="onnxruntime")

    monkeypatch.setattr(caplet.caption_command, "run", break_off)
    status, _, err = run(photos / "cat.jpg", capfd=capfd)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("caplet: onnxruntime cannot be imported (libonnxruntime.so")


def test_a_dependency_for_another_python_is_told_without_the_advice_that_numpy_puts_around_it(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def break_off(_: Any) -> int:
        try:
            raise ModuleNotFoundError("No module named 'numpy._umath'", name="numpy._umath")
        except ImportError as error:
            raise ImportError("\n\nIMPORTANT: PLEASE READ THIS FOR ADVICE\n\n" + 20 * "words\n") from error

    monkeypatch.setattr(caplet.caption_command, "run", break_off)
    told = "caplet: numpy._umath cannot be imported (No module named 'numpy._umath'); install caplet again\n"
    assert run(photos / "cat.jpg", capfd=capfd) == (1, "", told)


@pytest.mark.parametrize("told", [True, False])
def test_an_import_that_was_interrupted_is_an_interruption(
    told: bool, photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def break_off(_: Any) -> int:
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


def test_a_drawing_is_whole_or_not_there(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    drawings = tmp_path / "drawings"
    run(photos / "cat.jpg", "--attention", f"{drawings}/", capfd=capfd)
    before = (drawings / "cat.png").read_bytes()

    def break_off(_: Image.Image, target: BinaryIO, **__: Any) -> None:
        target.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", break_off)
        assert run(photos / "cat.jpg", photos / "coffee.jpg", "--attention", drawings, capfd=capfd)[0] == 130
    assert {path.name: path.read_bytes() for path in drawings.iterdir()} == {"cat.png": before}


def test_the_results_are_not_drawn_over(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Although the results are an empty file at first, which the shell may have made."""
    results, drawings = tmp_path / "drawings/cat.png", tmp_path / "drawings"
    command = [photos / "cat.jpg", photos / "coffee.jpg", "--format", "jsonl", "--attention", drawings]
    assert run(*command, "-o", results, capfd=capfd)[0] == 0
    assert len(results.read_text().splitlines()) == 2
    with results.open("wb") as shell:
        subprocess.run([sys.executable, "-m", "caplet", *map(str, command)], stdout=shell, check=True)
    assert len(results.read_text().splitlines()) == 2
    assert sorted(path.name for path in drawings.iterdir()) == ["cat-2.png", "cat.png", "coffee.png"]


@pytest.mark.parametrize("name", ["drawing.png", "/dev/stdout"])
def test_a_drawing_and_the_results_are_not_written_into_one_file(name: str, photos: Path, tmp_path: Path) -> None:
    """For example, if the shell sends standard output into the drawing's file: one of the two would be lost."""
    command = [sys.executable, "-m", "caplet", str(photos / "cat.jpg"), "--attention", name]
    with (tmp_path / "drawing.png").open("wb") as shell:
        done = subprocess.run(command, cwd=tmp_path, stdout=shell, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, b"--attention is where the results go" in done.stderr) == (2, True)
        subprocess.run([*command, "-o", "results"], cwd=tmp_path, stdout=shell, check=True)
    assert caplet.explain.is_drawing(tmp_path / "drawing.png")


@pytest.mark.parametrize("way", ["list", "standard input", "device", "pipe", "link"])
def test_a_drawing_that_is_captioned_later_is_not_drawn_over(
    way: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """However far down a list it comes, and even if a link in a searched folder leads to it."""
    drawings, listing = tmp_path / "drawings", tmp_path / "list"
    shutil.copy(photos / "coffee.jpg", tmp_path / "cat.jpg")
    assert run(tmp_path / "cat.jpg", "--attention", f"{drawings}/", capfd=capfd)[0] == 0
    before = (drawings / "cat.png").read_bytes()
    listing.write_text(f"{photos / 'cat.jpg'}\n{drawings / 'cat.png'}\n")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.png").symlink_to(drawings / "cat.png")
    inputs: list[Any] = {
        "list": ["--files-from", listing],
        "standard input": ["--files-from", "-"],
        "device": ["--files-from", "/dev/fd/"],
        "pipe": ["--files-from", tmp_path / "pipe"],
        "link": [photos / "cat.jpg", tmp_path / "links"],
    }[way]
    if way == "pipe":
        os.mkfifo(tmp_path / "pipe")
        threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(listing.read_bytes()), daemon=True).start()
    with listing.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.chdir(tmp_path)
        Path("-").touch()  # the list is not this file
        if way == "device":
            inputs[-1] += str(stdin.fileno())
        # One by one, so that the first drawing is written before the second photo is read.
        assert run(*inputs, "--attention", drawings, "--batch-size", 1, "--threads", 1, capfd=capfd)[0] == 0
    assert (drawings / "cat.png").read_bytes() == before
    assert (drawings / "cat-2.png").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_model_in_a_folder_whose_name_is_not_utf_8(
    photos: Path, tmp_path: Path, tiny_bundle: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_bundle, os.fsdecode(bytes(tmp_path) + b"/b\xff\xe9"))
    assert run(photos / "cat.jpg", "--model", model, capfd=capfd) == (0, f"{texts['cat']}\n", "")


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
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (status, b"epoch 1\n")


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


def test_an_interrupt_waits_for_no_worker(tmp_path: Path) -> None:
    process = start_with_a_photo_that_hangs(tmp_path, "hangs.jpg")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"caplet: interrupted\n")


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
