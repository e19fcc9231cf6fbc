"""`--resume`: a run that is killed at any moment and started again ends with exactly one record per input."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from caplet.cli import main
from caplet.output import Output
from command_line import Terminal, needs_pipes, needs_signals
from sample_photos import NAMES

LONG = os.environ.get("CAPLET_LONG") == "1"


@pytest.fixture
def inputs(photos: Path, tmp_path: Path) -> list[str]:
    """Photos, one of them broken, one missing, one given twice, one with an odd name."""
    (tmp_path / "broken.jpg").write_bytes(b"x")
    odd = tmp_path / ("é.jpg" if sys.platform == "win32" else 'a\n"\\é.jpg')
    shutil.copy(photos / "cat.jpg", odd)
    good = [str(photos / f"{name}.jpg") for name in NAMES]
    return [*good, str(tmp_path / "broken.jpg"), str(odd), "nowhere.jpg", good[0]]


def resume(inputs: list[str], out: Path, *more: str) -> int:
    return main([*inputs, "--format", "jsonl", "-o", str(out), "--resume", "-q", *more])


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]


def test_a_file_that_is_not_there_yet_is_begun(inputs: list[str], tmp_path: Path) -> None:
    assert resume(inputs, tmp_path / "out") == 1
    assert [record["path"] for record in records(tmp_path / "out")] == inputs


def test_whatever_the_file_was_cut_to_it_ends_up_whole(inputs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    resume(inputs, out)
    whole = out.read_bytes()
    expected = records(out)
    lines = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    sample = random.Random(0).sample(range(len(whole)), 400 if LONG else 25)
    for cut in sorted({0, 1, len(whole), *lines, *(line - 1 for line in lines), *sample}):
        out.write_bytes(whole[:cut])
        assert resume(inputs, out) == 1
        found = records(out)
        assert [record["path"] for record in found] == inputs
        for one, other in zip(found, expected, strict=True):
            assert (one["path"], one.get("caption"), one.get("error")) == (
                other["path"],
                other.get("caption"),
                other.get("error"),
            )
        done = whole[:cut].rfind(b"\n") + 1
        assert out.read_bytes()[:done] == whole[:done]  # what had been written stays


def test_null_bytes_that_a_power_cut_left_are_cut_off(photos: Path, tmp_path: Path) -> None:
    out, good = tmp_path / "out", [str(photos / "cat.jpg"), str(photos / "rocket.jpg")]
    assert resume(good[:1], out) == 0
    before = out.read_bytes()
    out.write_bytes(before + bytes(4096))
    assert resume(good, out) == 0
    assert out.read_bytes().startswith(before) and [record["path"] for record in records(out)] == good


def test_done_means_done(photos: Path, tmp_path: Path) -> None:
    good, out = [str(photos / "cat.jpg")] * 3, tmp_path / "out"
    assert resume(good, out) == 0
    before = out.read_bytes()
    assert resume(good, out) == 0
    assert out.read_bytes() == before
    assert resume([*good, str(photos / "rocket.jpg")], out) == 0
    assert out.read_bytes().startswith(before)
    assert len(records(out)) == 4


def test_progress_counts_what_is_left_to_do(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caplet.progress._INTERVAL", 0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    names = [str(photos / f"{name}.jpg") for name in ("cat", "cat", "coffee", "rocket")]
    resume([*names[1:], "nowhere.jpg"], tmp_path / "out")  # all but the second cat, and another
    command = [*names, "--format", "jsonl", "-o", str(tmp_path / "out"), "--resume"]
    assert main(command) == 0
    assert [shown.split(",")[0] for shown in terminal.getvalue().split("\r") if "photos" in shown] == ["1/1 photos"]


def test_errors_of_the_first_part_count(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, good = tmp_path / "out", str(photos / "cat.jpg")
    resume(["nowhere.jpg"], out)
    assert resume(["nowhere.jpg", good], out) == 1
    assert len(records(out)) == 2
    for names in ([good, "nowhere.jpg"], ["nowhere.jpg", good]):
        assert main([*names, "--format", "jsonl", "-o", str(out), "--resume"]) == 1
        assert capfd.readouterr().err.startswith(f"caplet: {out}: has errors of photos that are not tried again; ")


def test_errors_of_photos_that_are_not_given_do_not_count(photos: Path, tmp_path: Path) -> None:
    resume(["nowhere.jpg"], tmp_path / "out")
    for _ in range(2):
        assert resume([str(photos / "cat.jpg")], tmp_path / "out") == 0


@pytest.mark.parametrize(
    "content",
    [
        b"photo.jpg\ta caption\n",
        b"[]\n",
        b"{}\n",
        b'{"path": "cat.jpg"}\n',
        b'{"path": 3, "model_sha256": ""}\n',
        b"[" * 9999 + b"\n",
        b'{"users": ["alice"]}',
        b"a note",
        b'{"path"; ',
        b"\0\0x",
    ],
)
def test_a_file_of_something_else_is_left_alone(
    content: bytes, inputs: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_bytes(content)
    assert resume(inputs, tmp_path / "out") == 2
    assert "line 1 is not a record of caplet" in capfd.readouterr().err
    assert (tmp_path / "out").read_bytes() == content


def test_captions_of_another_model_are_not_mixed_in(
    inputs: list[str], tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    resume(inputs, out)
    before = out.read_bytes()
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
    (other / "manifest.json").write_text((other / "manifest.json").read_text() + " ")
    assert resume(inputs, out, "--model", str(other)) == 2
    assert "another model" in capfd.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize("option", [["--beam", "1"], ["--max-length", "3"]])
def test_captions_of_another_search_are_not_mixed_in(
    option: list[str], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert resume([str(photos / "cat.jpg")], out, *option) == 0
    before = out.read_bytes()
    both = [str(photos / "cat.jpg"), str(photos / "rocket.jpg")]
    assert resume(both, out) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"caplet: --resume: {out} was written with --beam ") and " ".join(option) in err
    assert out.read_bytes() == before
    assert resume(both, out, *err.split(" with ")[1].split(";")[0].split()) == 0  # with what the message says


def test_records_that_do_not_say_how_they_were_searched_are_gone_on_with(photos: Path, tmp_path: Path) -> None:
    """Those of caplet 0.9 and older; what somebody put in place of a drawing does not matter either."""
    out = tmp_path / "out"
    assert resume([str(photos / "cat.jpg")], out) == 0
    record = json.loads(out.read_bytes())
    del record["beam_size"], record["max_length"]
    record["drawing"] = ["no path"]
    out.write_text(json.dumps(record) + "\n")
    assert resume([str(photos / "cat.jpg"), str(photos / "rocket.jpg")], out) == 0
    assert len(out.read_bytes().splitlines()) == 2


def test_a_folder_as_output(inputs: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert resume(inputs, tmp_path) == 2
    assert "is not a file" in capfd.readouterr().err
    assert resume(inputs, Path(os.devnull)) == 2


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A named pipe that, if it is read after all, is empty: nobody writes to it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = {str(pipe): lambda *_: io.BytesIO()}
    monkeypatch.setattr("caplet.inputs.open", lambda name, mode: read.get(name, open)(name, mode), raising=False)
    return pipe


@needs_pipes
@pytest.mark.parametrize("way", ["-", "named", "<(...)", "<"])
def test_a_name_that_may_be_another_photo_each_time_is_refused(
    way: str, pipe: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written, and before any photo ahead of it is captioned."""
    with (photos / "cat.jpg").open() as file:
        name = {"-": "-", "named": str(pipe), "<(...)": "/dev/fd/63", "<": f"/dev/fd/{file.fileno()}"}[way]
        assert resume([str(photos / "rocket.jpg"), name], tmp_path / "out", "--attention", f"{tmp_path}/new/") == 2
    err = f"caplet: --resume: {name} may be another photo each time; save it as a file\n"
    assert capfd.readouterr() == ("", err)
    assert list(tmp_path.iterdir()) == [pipe]


@needs_pipes
def test_a_pipe_in_a_list_is_refused_at_its_turn(
    pipe: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [str(photos / "cat.jpg"), "-"]
    (tmp_path / "list").write_text("\n".join([*names, str(pipe), str(photos / "rocket.jpg")]))
    for _ in range(2):
        assert resume(["--files-from", str(tmp_path / "list")], tmp_path / "out") == 2
        assert capfd.readouterr().err == f"caplet: --resume: {pipe} may be another photo each time; save it as a file\n"
        assert [record["path"] for record in records(tmp_path / "out")] == names  # in a list, - is a file of that name


def test_drawings_of_photos_of_one_name_keep_their_numbers(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    shutil.copy(photos / "cat.jpg", tmp_path / "one" / "x.jpg")
    shutil.copy(photos / "rocket.jpg", tmp_path / "two" / "x.jpg")
    names, out, folder = [str(tmp_path / part / "x.jpg") for part in ("one", "two")], tmp_path / "out", tmp_path / "new"
    assert resume(names, out, "--attention", str(folder)) == 0
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(expected) == {"x.png", "x-2.png"}
    (folder / "x-2.png").unlink()
    out.write_bytes(out.read_bytes().splitlines(keepends=True)[0])
    assert resume(names, out, "--attention", str(folder)) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def test_drawings_of_photos_that_are_done_stay(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a photo of the same name is added later, in a folder that comes before theirs."""
    monkeypatch.chdir(tmp_path)
    for part in ("a", "b", "c"):
        (tmp_path / "in" / part).mkdir(parents=True)
    shutil.copy(photos / "cat.jpg", "in/b/x.jpg")
    shutil.copy(photos / "coffee.jpg", "in/c/x.jpg")
    assert resume(["-r", "in"], Path("out"), "--attention", "drawings") == 0
    before = {path: path.read_bytes() for path in Path("drawings").iterdir()}
    shutil.copy(photos / "rocket.jpg", "in/a/x.jpg")
    # However the folder is spelled this time.
    assert resume(["-r", "in"], Path("out"), "--attention", str(tmp_path / "in/../drawings")) == 0
    assert {path: path.read_bytes() for path in before} == before
    drawings = {record["path"]: Path(record["drawing"]).resolve() for record in records(Path("out"))}
    names = {"in/b/x.jpg": "x.png", "in/c/x.jpg": "x-2.png", "in/a/x.jpg": "x-3.png"}
    assert drawings == {str(Path(photo)): tmp_path / "drawings" / name for photo, name in names.items()}


def test_a_drawing_of_one_photo_that_is_done_stays(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, drawing = tmp_path / "out", tmp_path / "x.png"
    for photo, status in (("cat.jpg", 0), ("rocket.jpg", 2), ("cat.jpg", 0)):
        assert resume([str(photos / photo)], out, "--attention", str(drawing)) == status
        if photo == "rocket.jpg":
            assert capfd.readouterr().err.startswith(f"caplet: --attention: {drawing} is the drawing of another photo;")
    assert [record["path"] for record in records(out)] == [str(photos / "cat.jpg")]


def test_a_drawing_that_failed_is_told_by_the_record(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """So that a resumed run does not end as if all were well, and the photo can be found and drawn again."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    out, drawings = tmp_path / "out", tmp_path / "drawings"
    command = [str(photos / "cat.jpg"), str(photos / "rocket.jpg")], out, "--attention", str(drawings)
    with monkeypatch.context() as patched:
        patched.setattr("caplet.explain.save_drawing", refuse)
        assert resume(*command) == 1
    failed = records(out)
    assert all(record["caption"] and "No space left" in record["error"] for record in failed)
    assert not any("drawing" in record for record in failed)
    assert resume(*command) == 1
    assert records(out) == failed
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(line for line in lines if '"error": ' not in line))  # as the documentation advises
    assert resume(*command) == 0
    assert {record["drawing"] for record in records(out)} == {str(path) for path in drawings.iterdir()}


@pytest.mark.parametrize("options", [["--format", "jsonl", "--resume"], ["--format", "csv"]])
def test_a_file_is_written_by_one_run_at_a_time(
    options: list[str], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with Output(str(out)) as output:
        output.write("by the other run")
        assert main([str(photos / "cat.jpg"), "-o", str(out), *options]) == 1
        assert capfd.readouterr().err.startswith(f"caplet: {out}: another caplet is writing to it; ")
        assert out.read_text() == "by the other run"
        output.clear()
    assert main([str(photos / "cat.jpg"), "-o", str(out), *options]) == 0
    assert list(tmp_path.iterdir()) == [out]
    with Output(os.devnull), Output(os.devnull):
        pass  # what is not a file has no lines to mix up


def test_a_file_system_without_locks(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("msvcrt.locking" if sys.platform == "win32" else "fcntl.flock", no_locks)
    assert resume([str(photos / "cat.jpg")], tmp_path / "out") == 0


@needs_signals
def test_killed_at_random_again_and_again(inputs: list[str], tmp_path: Path) -> None:
    """Every run is killed at a random moment: while it starts, reads the file, captions, writes."""
    names, out = inputs * 40, tmp_path / "out"
    (tmp_path / "list").write_bytes(b"\0".join(map(os.fsencode, names)))
    command = [sys.executable, "-m", "caplet", "--files-from", str(tmp_path / "list"), "--null"]
    command += ["--format", "jsonl", "-o", str(out), "--resume", "-q", "--batch-size", "2"]
    chance = random.Random(1)
    for _ in range(60 if LONG else 6):
        process = subprocess.Popen(command)
        # Half of the kills come soon after something was written, the others at any time.
        size = out.stat().st_size if out.exists() else 0
        deadline = time.monotonic() + 30
        if chance.random() < 0.5:
            while process.poll() is None and time.monotonic() < deadline:
                if out.exists() and out.stat().st_size > size:
                    break
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists() and chance.random() < 0.5:  # the kill tore a write apart
            with out.open("r+b") as file:
                file.truncate(max(0, out.stat().st_size - chance.randrange(300)))
    assert subprocess.run(command, check=False).returncode == 1
    assert [record["path"] for record in records(out)] == names
