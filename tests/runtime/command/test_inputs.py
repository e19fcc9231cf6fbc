"""Which photos the command takes: those of files, folders and lists, whatever their names."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import caplet.output
from caplet.cli import main
from caplet.inputs import find_inputs, is_descriptor
from command_line import needs_bytes_in_names, needs_devices, needs_links, needs_pipes, run, start

# Folders.


def test_a_folder_gives_its_photos_by_name(
    folder: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(folder, capfd=capfd)
    assert out == f"{folder / 'a.PNG'}\t{texts['rocket']}\n{folder / 'b.jpg'}\t{texts['cat']}\n"


def test_a_heic_photo_in_a_folder_is_not_passed_over(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    shutil.copy(photos / "cat.jpg", tmp_path)
    status, out, err = run(tmp_path, capfd=capfd)
    assert (status, out.count("\n"), err.count("\n")) == (1, 1, 1)
    assert "IMG_0001.HEIC: is a HEIC photo" in err and "convert it to JPEG" in err


def test_every_suffix_of_the_formats_counts(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rare = ("avifs", "apng", "hif", "j2c", "jpc", "jpf", "jpx", "jxl", "mpo", "pfm", "pnm")
    for suffix in rare:
        shutil.copy(photos / "cat.jpg", tmp_path / f"x.{suffix}")
    status, out, _ = run(tmp_path, capfd=capfd)
    assert (status, [line.split("\t")[0] for line in out.splitlines()]) == (
        0,
        [str(tmp_path / f"x.{s}") for s in sorted(rare)],
    )


@pytest.mark.parametrize("listed", [False, True])
def test_recursive_gives_the_folders_in_it_too(
    listed: bool, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text(f"{folder}\n")
    status, out, _ = run("-r", *(["--files-from", tmp_path / "list"] if listed else [folder]), capfd=capfd)
    assert status == 0
    paths = [line.split("\t")[0] for line in out.splitlines()]
    assert paths == [str(folder / name) for name in ("a.PNG", "b.jpg", "inner/c.jpg", "inner/deep/d.jpg")]


def test_thumbnails_and_recycle_bins_of_others_are_not_looked_into(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """But for those that are named."""
    for name in ("@eaDir", "inner/@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN"):
        shutil.copytree(folder / "inner" / "deep", folder / name)
    status, out, _ = run("-r", folder, folder / "#recycle", capfd=capfd)
    assert status == 0
    paths = [line.split("\t")[0] for line in out.splitlines()]
    expected = ("a.PNG", "b.jpg", "inner/c.jpg", "inner/deep/d.jpg", "#recycle/d.jpg")
    assert paths == [str(folder / name) for name in expected]


@needs_links
def test_loops_of_links_end(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "inner" / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder / "inner")
    status, out, _ = run("--recursive", folder, capfd=capfd)
    assert status == 0
    assert len(out.splitlines()) == 4  # every photo once


@needs_links
def test_a_link_that_leads_nowhere_is_not_passed_over(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "gone.jpg").symlink_to("nowhere")
    status, out, err = run(folder, capfd=capfd)
    assert (status, len(out.splitlines())) == (1, 2)
    assert "gone.jpg" in err


@needs_pipes
@needs_links
def test_things_that_are_not_files_are_passed_over(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to(folder / "pipe.jpg")  # opened, it would wait for ever for a writer
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "folder.jpg").mkdir()
    assert run(folder, capfd=capfd)[0] == 0


@needs_links
@pytest.mark.parametrize("options", [[], ["--recursive"]])
def test_a_link_to_itself_costs_the_others_nothing(options: list[str], folder: Path, capfd: Any) -> None:
    (folder / "a.jpg").symlink_to("a.jpg")
    (folder / "loop").symlink_to("loop")
    status, out, err = run(folder, *options, capfd=capfd)
    assert (status, len(out.splitlines())) == (1, 4 if options else 2)
    assert err.startswith(f"caplet: {folder}/a.jpg: cannot be read") and err.count("\n") == 1


@pytest.mark.skipif(os.mkdir not in os.supports_dir_fd, reason="no way to make them on this system")
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
    assert err == f"caplet: {folder / 'inner'}: cannot be listed (Permission denied); check its permissions\n"


# Lists.


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


def test_the_photos_before_a_defect_of_a_list_have_their_results(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").write_text(f"{photos / 'cat.jpg'}\n{tmp_path / 'empty'}\n{'x' * 200_000}")
    status, out, err = run("--files-from", tmp_path / "list", "--format", "jsonl", capfd=capfd)
    assert status == 2
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(photos / "cat.jpg"), str(tmp_path / "empty")]
    assert "without photos" in err and "bytes without an end" in err


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_a_name_in_a_list_is_taken_as_it_is(end: bytes, tmp_path: Path) -> None:
    names = [b" a ", b"-", b"caf\xe9.jpg", b"b\r\0c" if end == b"\n" else b"b\nc\r", b"\xef\xbb\xbfd", b"/dev/fd/99999"]
    names += [b"%d" % number for number in range(15_000)]  # more than one read takes
    names.append(b"x" * 4000 + b" ")
    (tmp_path / "list").write_bytes(end.join(names))
    found = list(find_inputs([], str(tmp_path / "list"), null=end == b"\0", recursive=False))
    assert [photo.name.encode("utf-8", "surrogateescape") for photo in found] == names
    assert not any(photo.piped for photo in found)


def test_a_name_in_a_list_may_be_as_long_as_any_that_windows_takes(tmp_path: Path) -> None:
    name = "写" * 32_767
    (tmp_path / "list").write_text(f"{'x' * 65_000}\n{name}\n", encoding="utf-8")
    assert [photo.name for photo in find_inputs([], str(tmp_path / "list"), null=False, recursive=False)][1:] == [name]


def test_a_list_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("kept")
    status, out, err = run("--files-from", "nowhere.txt", "-o", tmp_path / "out", capfd=capfd)
    assert (status, out, err) == (1, "", "caplet: nowhere.txt: No such file or directory\n")
    assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize(("options", "ends"), [([], "newlines"), (["--null"], "null bytes")])
def test_a_list_whose_names_do_not_end_is_refused(
    options: list[str], ends: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "list").open("wb") as file:
        file.write(b"x" * 2**20)
    status, out, err = run("--files-from", tmp_path / "list", *options, capfd=capfd)
    assert (status, out) == (2, "")
    assert f"without an end; end names with {ends}" in err and err.count("\n") == 1


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


# Names.


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


def test_half_of_a_surrogate_pair_in_a_name_costs_nothing(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Names on Windows can have one; UTF-8 has no bytes for it."""
    status, out, err = run("\ud800.jpg", photos / "cat.jpg", "--format", "csv", capfd=capfd)
    assert (status, len(out.splitlines())) == (1, 3)
    assert err.startswith("caplet: \\ud800.jpg: ") and err.count("\n") == 1


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


@needs_devices
@pytest.mark.parametrize("name", ["/dev/stdin", "/dev//fd/63", "/dev/shm/../fd/0", "/proc/self/fd/3", "/proc/12/fd/3"])
def test_an_open_file_is_known_by_its_name(name: str) -> None:
    assert is_descriptor(name)
    assert not is_descriptor(f"{name}.jpg") and not is_descriptor(f"photos{name}")


# What a photo may be.


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
