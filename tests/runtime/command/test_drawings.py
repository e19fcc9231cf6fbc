"""`--attention`: drawings of where the captioner looked, their names, and what they never overwrite."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import caplet.explain
from caplet import Caption, Captioner, ImageNotFoundError
from command_line import needs_bytes_in_names, needs_devices, needs_links, needs_pipes, run, start
from sample_photos import NAMES

# What is drawn.


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


def test_attention_of_standard_input_in_a_folder_that_exists(photos: Path, tmp_path: Path) -> None:
    process = start("-", "--attention", tmp_path, stdin=subprocess.PIPE)
    process.communicate((photos / "cat.jpg").read_bytes())
    assert process.returncode == 0
    assert Image.open(tmp_path / "stdin.png").size > (100, 100)


@needs_pipes
def test_a_photo_in_a_pipe_is_drawn_under_its_name(photos: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "camera")
    process = start(tmp_path / "camera", photos / "cat.jpg", "--attention", tmp_path / "drawings")
    (tmp_path / "camera").write_bytes((photos / "coffee.jpg").read_bytes())
    process.communicate(timeout=60)
    assert sorted(path.name for path in (tmp_path / "drawings").iterdir()) == ["camera.png", "cat.png"]


@needs_pipes
def test_a_photo_in_a_pipe_is_read_once_and_drawn_all_the_same(
    photos: Path, tmp_path: Path, texts: dict[str, str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = start(tmp_path / "pipe", "--attention", tmp_path / "drawing.png")
    (tmp_path / "pipe").write_bytes((photos / "cat.jpg").read_bytes())
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.decode(), err) == (0, texts["cat"] + "\n", b"")
    assert Image.open(tmp_path / "drawing.png").size > (100, 100)


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


def test_a_photo_that_is_gone_when_it_is_drawn_keeps_its_caption(
    photos: Path, tmp_path: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise ImageNotFoundError("cat.jpg")

    monkeypatch.setattr(Caption, "plot", gone)
    status, out, err = run(photos / "cat.jpg", "--attention", tmp_path / "drawing.png", capfd=capfd)
    assert (status, out, err) == (1, texts["cat"] + "\n", "caplet: cat.jpg: no such file; check the path\n")


# Names.


@needs_bytes_in_names
def test_a_long_name_is_cut_for_its_drawing(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inputs = [tmp_path / ("é" * 125 + end) for end in ("aa", "ab")]
    for photo in inputs:
        shutil.copy(photos / "cat.jpg", photo)
    status, out, err = run(*inputs, photos / "cat.jpg", "--attention", tmp_path / "out", capfd=capfd)
    assert (status, out.count("\n"), err) == (0, 3, "")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"é" * 125 + "a.png", "é" * 124 + "-2.png", "cat.png"}


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


def test_numbers_do_not_run_into_names(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inputs = [tmp_path / "one" / "x.jpg", tmp_path / "two" / "x.jpg", tmp_path / "x-2.jpg"]
    for photo in inputs:
        photo.parent.mkdir(exist_ok=True)
        shutil.copy(photos / "cat.jpg", photo)
    assert run(*inputs, "--attention", tmp_path / "new", capfd=capfd)[0] == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"x.png", "x-2.png", "x-2-2.png"}


def test_a_slash_at_the_end_means_a_folder_whatever_the_separator(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("caplet.caption_command.os.sep", "\\")
    assert run(photos / "cat.jpg", "--attention", f"{tmp_path}/new/", capfd=capfd)[0] == 0
    assert (tmp_path / "new" / "cat.png").exists()


# Never over something else.


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


def test_a_drawing_is_not_replaced_by_a_drawing_of_itself(photos: Path, tmp_path: Path, capfd: Any) -> None:
    """Although it is a drawing, which another photo's drawing may replace."""
    drawing = tmp_path / "cat.png"
    assert run(photos / "cat.jpg", "--attention", drawing, capfd=capfd)[0] == 0
    before = drawing.read_bytes()
    status, _, err = run(drawing, "--attention", drawing, capfd=capfd)
    assert (status, "--attention would overwrite a photo" in err) == (2, True)
    with drawing.open("rb") as stdin:
        process = start("-", "--attention", drawing, stdin=stdin)
        _, complaint = process.communicate()
    assert (process.returncode, b"--attention would overwrite a photo" in complaint) == (2, True)
    assert drawing.read_bytes() == before


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


@pytest.mark.parametrize(
    "way",
    [
        *("list", "standard input"),
        *(pytest.param("device", marks=needs_devices), pytest.param("pipe", marks=needs_pipes)),
        pytest.param("link", marks=needs_links),
    ],
)
def test_a_drawing_that_is_captioned_later_is_not_drawn_over(
    way: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """However far down a list it comes, and even if a link in a searched folder leads to it."""
    drawings, listing = tmp_path / "drawings", tmp_path / "list"
    shutil.copy(photos / "coffee.jpg", tmp_path / "cat.jpg")
    assert run(tmp_path / "cat.jpg", "--attention", f"{drawings}/", capfd=capfd)[0] == 0
    before = (drawings / "cat.png").read_bytes()
    listing.write_text(f"{photos / 'cat.jpg'}\n{drawings / 'cat.png'}\n")
    inputs: list[Any] = {
        "list": ["--files-from", listing],
        "standard input": ["--files-from", "-"],
        "device": ["--files-from", "/dev/fd/"],
        "pipe": ["--files-from", tmp_path / "pipe"],
        "link": [photos / "cat.jpg", tmp_path / "links"],
    }[way]
    if way == "link":
        (tmp_path / "links").mkdir()
        (tmp_path / "links/a.png").symlink_to(drawings / "cat.png")
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


@pytest.mark.parametrize("way", ["list", pytest.param("link", marks=needs_links)])
def test_the_folder_of_the_drawings_is_not_searched(
    way: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even if a list names it or a link leads there, which shows only then; other photos get their captions."""
    drawings, links = tmp_path / "drawings", tmp_path / "links"
    drawings.mkdir()
    shutil.copy(photos / "cat.jpg", drawings)
    if way == "link":
        links.mkdir()
        (links / "there").symlink_to(drawings)
    (tmp_path / "list").write_text(f"{drawings}\n")
    searched = ["--files-from", tmp_path / "list"] if way == "list" else ["--recursive", links]
    status, out, err = run(photos / "cat.jpg", *searched, "--attention", drawings, capfd=capfd)
    assert (status, out.count("\n"), err.count("\n")) == (1, 1, 1)
    assert "is where the drawings go" in err
    assert sorted(path.name for path in drawings.iterdir()) == ["cat.jpg", "cat.png"]


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


@pytest.mark.parametrize("name", ["drawing.png", pytest.param("/dev/stdout", marks=needs_devices)])
def test_a_drawing_and_the_results_are_not_written_into_one_file(name: str, photos: Path, tmp_path: Path) -> None:
    """For example, if the shell sends standard output into the drawing's file: one of the two would be lost."""
    command = [sys.executable, "-m", "caplet", str(photos / "cat.jpg"), "--attention", name]
    with (tmp_path / "drawing.png").open("wb") as shell:
        done = subprocess.run(command, cwd=tmp_path, stdout=shell, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, b"--attention is where the results go" in done.stderr) == (2, True)
        subprocess.run([*command, "-o", "results"], cwd=tmp_path, stdout=shell, check=True)
    assert caplet.explain.is_drawing(tmp_path / "drawing.png")
