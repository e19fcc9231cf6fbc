"""What the command writes and where: text, tables and JSON lines, and never over what is not its own."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import caplet.output
from caplet import Captioner
from caplet.targets import objection
from command_line import needs_bytes_in_names, needs_devices, needs_links, needs_pipes, needs_posix_names, run
from sample_photos import NAMES

# What is written.


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
    numbers = [good["score"], *(entry["log_prob"] for entry in good["words"])]
    numbers += [entry["score"] for entry in good["alternatives"]]
    assert numbers == [round(number, 6) for number in numbers]
    assert good["milliseconds"] == round(good["milliseconds"], 3)
    assert (good["model"], good["model_sha256"]) == ("tiny-6", Captioner(tiny_bundle).bundle.digest)
    assert all(
        (each["beam_size"], each["max_length"]) == (decoding.beam_size, decoding.max_length) for each in (good, bad)
    )
    assert set(bad) == {"path", "model", "model_sha256", "beam_size", "max_length", "error"}
    assert "nowhere.jpg" in bad["error"]
    assert err == f"caplet: {bad['error']}\n"


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_tables_hold_the_same_as_jsonl(
    form: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos)  # tables escape backslashes, which longer names have on Windows
    arguments = ("cat.jpg", "nowhere.jpg", "-q", "--format")
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


@needs_posix_names
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


@needs_posix_names
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


@needs_posix_names
@pytest.mark.parametrize("form", ["text", "csv", "tsv"])
def test_a_name_does_not_steer_the_terminal(
    form: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("caplet.output.Output.is_terminal", form != "text")  # in text, it does so nowhere
    shutil.copy(photos / "cat.jpg", tmp_path / "\x1b[2J\x07\x1f\x7f\x9b\x9f\xa0\n\u2028\u202e\u2066é\u200d\u200f.jpg")
    status, out, err = run(tmp_path, "--format", form, capfd=capfd)
    assert (status, err) == (0, "")
    name = "\\x1b[2J\\x07\\x1f\\x7f\\x9b\\x9f\xa0\\n\\u2028\\u202e\\u2066é\u200d\u200f.jpg"
    assert out.removesuffix("\n").split("\n")[-1].startswith(f"{tmp_path}/{name}{',' if form == 'csv' else chr(9)}")


@needs_posix_names
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_table_in_a_file_has_the_name_as_it_is(form: str, photos: Path, tmp_path: Path, capfd: Any) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path / "\x1b[2J\u2028\u202eé.jpg")
    assert run(tmp_path, "--format", form, "-o", tmp_path / "out", capfd=capfd) == (0, "", "")
    assert f"{tmp_path}/\x1b[2J\u2028\u202eé.jpg" in (tmp_path / "out").read_text(encoding="utf-8")


@needs_posix_names
def test_a_backslash_in_a_name_is_escaped_in_a_table(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path / "a\\tb.jpg")
    monkeypatch.chdir(tmp_path)
    _, out, _ = run("a\\tb.jpg", "--format", "tsv", capfd=capfd)
    assert out.splitlines()[1].split("\t")[0] == "a\\\\tb.jpg"


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
    (model / "vocabulary.txt").write_text(words, newline="\n")
    status, out, err = run("--model", model, photos / "cat.jpg", capfd=capfd)
    assert (status, out) == (1, "")
    assert err.startswith(f"caplet: {model / 'vocabulary.txt'}: ")
    status, out, _ = run("--model", model, "--no-verify", photos / "cat.jpg", capfd=capfd)
    assert status == 0
    assert "tandem" in out


@needs_bytes_in_names
def test_a_model_in_a_folder_whose_name_is_not_utf_8(
    photos: Path, tmp_path: Path, tiny_bundle: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_bundle, os.fsdecode(bytes(tmp_path) + b"/b\xff\xe9"))
    assert run(photos / "cat.jpg", "--model", model, capfd=capfd) == (0, f"{texts['cat']}\n", "")


# Where.


def test_output_goes_to_a_file(
    photos: Path, tmp_path: Path, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("what was here before")
    assert run(photos / "cat.jpg", "-o", tmp_path / "out", capfd=capfd) == (0, "", "")
    assert (tmp_path / "out").read_text() == texts["cat"] + "\n"


def test_a_line_is_written_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a pipe or a full disk takes only a few bytes at a time."""

    class Narrow(io.FileIO):
        def write(self, content: Any) -> int:
            return super().write(content[:5])

    monkeypatch.setattr("caplet.output.open", lambda path, *_, **__: Narrow(path, "ab"), raising=False)
    with caplet.output.Output(str(tmp_path / "out")) as output:
        output.write("a dog runs over é\n")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "a dog runs over é\n"


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


@pytest.mark.parametrize(
    "arguments",
    [["cat.jpg", "-o", "x" * 300 + ".jpg"], pytest.param([".", "--attention", "loop"], marks=needs_links)],
)
def test_targets_that_no_file_can_have(
    arguments: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path)
    if "loop" in arguments:
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
    for option in ([], ["--recursive"]):
        told = run(photos, "--attention", "out", *option, capfd=capfd)
        assert told == (1, "", "caplet: out: No such file or directory\n")
    status, _, err = run(photos / "cat.jpg", "--attention", "out.png", capfd=capfd)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("caplet: out.png: ")


# Never over something else.


@needs_links
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


NOTHING = {
    "output": None, "attention": None, "photos": [], "files_from": None, "resume": False, "recursive": False,
    "sidecar": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"output": "link", "files_from": "list"}, "-o would overwrite the list of files"),
        pytest.param(
            {"output": "/dev/stdin", "files_from": "-"}, "-o would overwrite the list of files", marks=needs_devices
        ),
        ({"output": "list", "attention": "link"}, "-o and --attention are the same file"),
        ({"output": "new", "attention": "folder/../new"}, "-o and --attention are the same file"),
        ({"photos": ["folder"], "attention": "folder"}, "--attention would put drawings among the photos"),
        (
            {"photos": ["folder"], "attention": "folder/new", "recursive": True},
            "--attention would put drawings among the photos",
        ),
        ({"photos": ["folder"], "attention": "folder/new"}, None),
        ({"photos": ["a name with\0"], "output": "list"}, None),
        ({"photos": ["nowhere"], "output": "new"}, None),
        ({"photos": ["nowhere"], "attention": "nowhere"}, None),  # it is the photo that is told to be missing
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


WITHOUT_DEV_STDIN = """
import os, sys
from caplet.cli import main

def stat(file, *arguments, there=os.stat, **options):
    if file == "/dev/stdin":
        raise FileNotFoundError(file)
    return there(file, *arguments, **options)

os.stat = stat
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--files-from", "-", "-o"], "-o would overwrite the list of files"),
        (["-", "-o"], "-o would overwrite a photo"),
        (["-", "--attention"], "--attention would overwrite a photo"),
    ],
    ids=str,
)
def test_the_file_on_standard_input_is_not_overwritten_where_that_has_no_name(
    arguments: list[str], expected: str, tmp_path: Path
) -> None:
    """As on Windows."""
    (tmp_path / "file").write_text("cat.jpg\n")
    command = [sys.executable, "-c", WITHOUT_DEV_STDIN, *arguments, str(tmp_path / "file")]
    with (tmp_path / "file").open() as file:
        done = subprocess.run(command, stdin=file, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"caplet: error: {expected}; see caplet --help\n")
    assert (tmp_path / "file").read_text() == "cat.jpg\n"


def test_the_drawing_on_standard_input_is_not_drawn_over_where_that_has_no_name(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "drawings").mkdir()
    drawing = tmp_path / "drawings" / "stdin.png"
    command = [sys.executable, "-c", WITHOUT_DEV_STDIN, "-", "--attention", str(tmp_path / "drawings")]
    for photo, found in ((photos / "cat.jpg", {"stdin.png"}), (drawing, {"stdin.png", "stdin-2.png"})):
        with photo.open("rb") as file:
            subprocess.run(command, stdin=file, check=True)
        assert {path.name for path in (tmp_path / "drawings").iterdir()} == found


@pytest.mark.parametrize("device", [0, 7])
def test_a_drive_that_numbers_no_files(
    device: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """As WebDAV (https://github.com/python/cpython/issues/74665) and SSHFS on Windows."""

    def without_inode(*arguments: Any, there: Any = os.stat, **options: Any) -> os.stat_result:
        found = there(*arguments, **options)
        return os.stat_result((found.st_mode, 0, device, *found[3:]))

    monkeypatch.setattr(os, "stat", without_inode)
    for folder in ("a", "b"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        shutil.copyfile(photos / "cat.jpg", tmp_path / "photos" / folder / "cat.jpg")
    (tmp_path / "captions").write_text("of an earlier run\n")
    (tmp_path / "list").write_text(f"{tmp_path / 'photos'}\n")
    written = ("-o", tmp_path / "captions", "--attention", tmp_path / "drawings")
    for _ in range(2):
        assert run("--files-from", tmp_path / "list", "--recursive", *written, capfd=capfd) == (0, "", "")
        assert len((tmp_path / "captions").read_text().splitlines()) == 2
        assert len(list((tmp_path / "drawings").iterdir())) == 2
    (tmp_path / "scan").write_bytes(b"what is left of a picture")
    status, _, err = run(tmp_path / "scan", "-o", tmp_path / "photos" / ".." / "scan", capfd=capfd)
    assert status == 2 and "-o would overwrite a photo" in err


def test_a_file_that_cannot_be_read_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it can be written is found out when it is opened for that."""

    def refuse(*_: Any) -> None:
        raise PermissionError

    (tmp_path / "out").write_text("x")
    monkeypatch.setattr("caplet.targets.open", refuse, raising=False)
    assert objection(argparse.Namespace(**{**NOTHING, "output": str(tmp_path / "out")})) is None


@needs_pipes
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
    "picture",
    [
        *(b"P3\n1 1\n255\n9 9 9\n", b"P2 # by hand\n1 1 9 9", b"P5 2 1 255\n\1\2"),
        *(b"BM\x46\0\0\0\0\0\0\0", b"GIF89a,\1,\1\x91\1\1"),
    ],
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
