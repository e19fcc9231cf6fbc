"""`--sidecar`: captions in text files beside the photos, of which none that is there is ever touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caplet import caption_command, output
from caplet.cli import main
from caplet.output import Output, whole_file
from command_line import Terminal, needs_devices, needs_pipes, run

SKIPPED = "caplet: photos skipped, as there is a text file beside them: {}\n"


def texts_in(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file.read_bytes().decode() for file in folder.rglob("*.txt")}


def test_each_photo_gets_a_text_file_and_the_captions_come_as_ever(
    folder: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    plain = run("-r", folder, capfd=capfd)
    assert run("-r", folder, "--sidecar", capfd=capfd) == plain
    assert texts_in(folder) == {
        "notes.txt": "no photo",
        "a.txt": f"{texts['rocket']}\n",
        "b.txt": f"{texts['cat']}\n",
        "inner/c.txt": f"{texts['coffee']}\n",
        "inner/deep/d.txt": f"{texts['astronaut']}\n",
    }
    assert not list(folder.rglob(".caplet-*"))


def test_photos_with_a_text_file_are_left_to_it(
    folder: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.txt").write_text("my own words")
    shutil.copy(folder / "b.jpg", folder / "é v1.2.JPEG")
    status, out, err = run(folder, "--sidecar", capfd=capfd)
    assert (status, err) == (0, SKIPPED.format(1))
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(folder / "a.PNG"), str(folder / "é v1.2.JPEG")]
    assert texts_in(folder) == {
        "notes.txt": "no photo",
        "a.txt": f"{texts['rocket']}\n",
        "b.txt": "my own words",
        "é v1.2.txt": f"{texts['cat']}\n",
    }
    assert run(folder, "--sidecar", capfd=capfd) == (0, "", SKIPPED.format(3))
    assert run(folder, "--sidecar", "-q", capfd=capfd) == (0, "", "")
    assert run(folder / "b.jpg", "--sidecar", capfd=capfd) == (0, "", SKIPPED.format(1))
    assert (folder / "b.txt").read_text() == "my own words"


def test_photos_of_one_name_share_the_caption_of_the_first(
    folder: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Both are read before the first is written: their captions are searched together."""
    shutil.copy(folder / "a.PNG", folder / "b.png")
    status, out, _ = run(folder / "b.jpg", folder / "b.png", "--sidecar", capfd=capfd)
    assert (status, len(out.splitlines())) == (0, 2)
    assert (folder / "b.txt").read_text() == f"{texts['cat']}\n"


def test_a_photo_that_fails_gets_none_and_a_missing_one_is_told(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.jpg").write_bytes(b"no photo")
    (folder / "gone.txt").write_text("of a photo that is gone")
    status, _, err = run(folder / "b.jpg", folder / "gone.jpg", folder / "a.PNG", "--sidecar", capfd=capfd)
    assert status == 1
    assert [line.split(": ")[1] for line in err.splitlines()] == [str(folder / "b.jpg"), str(folder / "gone.jpg")]
    assert set(texts_in(folder)) == {"notes.txt", "gone.txt", "a.txt"}


def test_a_file_that_cannot_be_written_costs_no_caption_and_leaves_no_half(
    folder: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    status, out, err = run(folder / "b.jpg", "--sidecar", "--format", "jsonl", capfd=capfd)
    message = f"{folder / 'b.txt'}: cannot be written (No space left on device); check its permissions and the disk"
    record = json.loads(out)
    assert (status, record["caption"], record["error"], err) == (1, texts["cat"], message, f"caplet: {message}\n")
    assert texts_in(folder) == {"notes.txt": "no photo"}
    assert not list(folder.rglob(".caplet-*"))


@pytest.mark.parametrize(("platform", "refused", "tries"), [("win32", 3, 4), ("win32", 1000, 2), ("linux", 3, 1)])
def test_a_file_that_windows_lets_nobody_rename_for_a_moment_takes_its_place(
    platform: str, refused: int, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a virus scanner has it open. Elsewhere, or after a while, that is an error."""
    tried: list[Path] = []
    real = os.replace

    def busy(source: Path, target: Path) -> None:
        tried.append(target)
        if len(tried) <= refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(output, "sys", SimpleNamespace(platform=platform))
    times = iter([0.0, 0.0, 0.1, 0.2] if refused == 3 else [0.0, 0.0, 2.0])
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: next(times), sleep=lambda _: None))
    refusal = nullcontext() if tries > refused else pytest.raises(PermissionError)
    with refusal, whole_file(tmp_path / "cat.txt") as file:
        file.write(b"a cat")
    assert [file.name for file in tmp_path.iterdir()] == ["cat.txt"] * (tries > refused)
    assert len(tried) == tries


def test_with_drawings_both_are_made_and_a_drawing_that_fails_costs_no_text(
    folder: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert run(folder / "b.jpg", "--sidecar", "--attention", tmp_path / "b.png", capfd=capfd)[0] == 0
    assert (tmp_path / "b.png").exists()
    (folder / "b.txt").unlink()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("caplet.explain.save_drawing", fail)
    status, _, err = run(folder / "b.jpg", "--sidecar", "--attention", tmp_path / "b.png", capfd=capfd)
    assert status == 1 and f"{tmp_path / 'b.png'}: cannot be written" in err
    assert (folder / "b.txt").read_text() == f"{texts['cat']}\n"

    (folder / "b.txt").unlink()
    monkeypatch.setattr(os, "replace", fail)
    status, _, err = run(folder / "b.jpg", "--sidecar", "--attention", tmp_path / "b.png", capfd=capfd)
    told = [line.split(": ")[1] for line in err.splitlines()]
    assert status == 1 and told == [str(tmp_path / "b.png"), str(folder / "b.txt")]


@pytest.mark.parametrize("option", ["-o", "--attention"])
def test_nothing_else_goes_where_a_caption_belongs(
    option: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for file in (folder / "b.txt", "b.txt", "./b.txt"):
        status, out, err = run("b.jpg", "--sidecar", option, file, capfd=capfd)
        assert (status, out) == (2, "")
        assert f"{option} is where --sidecar writes a caption" in err
    assert not (folder / "b.txt").exists()


def test_results_of_a_folder_may_be_called_like_it(
    folder: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """No caption goes there. Nor is a folder without photos left out since there is such a file."""
    results = folder.with_suffix(".txt")
    assert run(folder, "--sidecar", "-o", results, capfd=capfd) == (0, "", "")
    assert results.read_text().count("\n") == 2
    (folder.parent / "empty").mkdir()
    (folder.parent / "empty.txt").touch()
    status, out, err = run(folder.parent / "empty", "--sidecar", capfd=capfd)
    assert (status, out) == (1, "") and "a folder without photos" in err


def test_a_text_file_that_comes_while_the_model_is_opened_mixes_up_no_captions(
    folder: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first photo has been decoded by then; the second got its caption."""
    decode = caption_command._decode_first

    def decode_slowly(*given: Any) -> Any:
        decoded = decode(*given)
        (folder / "b.txt").write_text("my own words")
        return decoded

    monkeypatch.setattr(caption_command, "_decode_first", decode_slowly)
    status, out, err = run(folder / "b.jpg", folder / "a.PNG", "--sidecar", capfd=capfd)
    assert (status, out, err) == (0, f"{folder / 'a.PNG'}\t{texts['rocket']}\n", SKIPPED.format(1))
    assert (folder / "b.txt").read_text() == "my own words"
    assert (folder / "a.txt").read_text() == f"{texts['rocket']}\n"


def test_nothing_lies_beside_standard_input(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run("-", "--sidecar", capfd=capfd)
    assert (status, out) == (2, "")
    assert "--sidecar: there is nothing beside standard input; give files" in err


@needs_devices
def test_nothing_is_written_beside_an_open_file(
    folder: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """As `caplet --sidecar /dev/stdin < cat.jpg` names: root got a file in /dev."""
    with (folder / "b.jpg").open("rb") as photo:
        name = f"/dev/fd/{photo.fileno()}"
        status, out, err = run(name, "--sidecar", capfd=capfd)
    assert (status, out) == (1, f"{texts['cat']}\n")
    assert err == f"caplet: {name}: is a stream, beside which nothing is written; save it as a file\n"


@needs_pipes
def test_nothing_is_written_beside_a_pipe(
    tmp_path: Path, photos: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "pipe.txt").touch()  # not taken for its caption: whoever writes to it would wait for ever
    content = (photos / "cat.jpg").read_bytes()
    writer = threading.Thread(target=lambda: pipe.write_bytes(content), daemon=True)
    writer.start()
    status, out, err = run(pipe, "--sidecar", capfd=capfd)
    writer.join(10)
    assert (status, out) == (1, f"{texts['cat']}\n")
    assert err == f"caplet: {pipe}: is a stream, beside which nothing is written; save it as a file\n"
    assert (tmp_path / "pipe.txt").read_bytes() == b""


def test_progress_counts_the_photos_that_are_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("caplet.progress._INTERVAL", 0)
    (folder / "b.txt").write_text("my own words")
    assert main([str(folder / "b.jpg"), str(folder / "a.PNG"), "--sidecar", "-o", str(tmp_path / "out")]) == 0
    assert "1/1 photos" in terminal.getvalue()


def test_an_interrupted_run_goes_on_where_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write = Output.write

    def interrupt(self: Output, line: str) -> None:
        write(self, line)
        if "b.jpg" in line:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Output, "write", interrupt)
        assert run("-r", folder, "--sidecar", capfd=capfd)[0] == 130
    assert set(texts_in(folder)) == {"notes.txt", "a.txt", "b.txt"}
    status, out, err = run("-r", folder, "--sidecar", capfd=capfd)
    assert (status, len(out.splitlines()), err) == (0, 2, SKIPPED.format(2))
