"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from caplet_export.config import Config
from caplet_export.errors import ExportError, StoreError
from caplet_export.outputs import (
    GRAPHS,
    RUN,
    check_file,
    check_folder,
    lock_path,
    whole_file,
    whole_files,
    whole_folder,
    write_whole,
)
from caplet_export.text import SPECIALS, Vocabulary


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    """The second would empty what the first has written, and the first would put the second's files in place."""
    import fcntl

    with whole_folder(tmp_path / "run", RUN) as temporary:
        (temporary / "config.json").write_text("first")
        other = os.open(temporary, os.O_RDONLY)  # locks are of descriptors, as if of another process
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
    temporary = tmp_path / ".run2.caplet-export.new"
    temporary.mkdir()
    (temporary / "config.json").write_text("second")
    other = os.open(temporary, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with (
        pytest.raises(ExportError, match="another caplet-export is writing to it"),
        whole_folder(tmp_path / "run2", RUN),
    ):
        pass
    assert (temporary / "config.json").read_text() == "second"
    os.close(other)


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_a_lock_is_no_hindrance_to_its_own_process_and_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none where the file system has no locks. Every lock is a descriptor, of which a process has so many."""

    def next_descriptor() -> int:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    free = next_descriptor()
    for run in ("locked", "unlocked"):
        with whole_folder(tmp_path / "new" / run, RUN) as temporary:
            lock_path(temporary)
        assert (tmp_path / "new" / run).is_dir() and next_descriptor() == free
        monkeypatch.setattr("fcntl.flock", mock.Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))


@pytest.mark.parametrize("old", [None, "old"], ids=["nothing there", "an old one there"])
def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "weights.h5"
    if old:
        path.write_text(old)
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == path.suffix, "writers go by it"
        assert (path.read_text() if old else path.exists()) == (old or False)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "weights.h5"
    path.write_text("old")

    def write() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing gives an error without a name; opening gives one that has it."""
    path = tmp_path / "ablation.json"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, "write_bytes", mock.Mock(side_effect=full))
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_whole(path, "a table")
    assert raised.value.filename == str(path)


@pytest.mark.parametrize("written", [Config(), Vocabulary([*SPECIALS, "dog"])], ids=["configuration", "vocabulary"])
def test_what_a_run_begins_with_is_whole_or_the_old_one(
    tmp_path: Path, written: Config | Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        written.save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, whole_file(tmp_path / "weights.h5"):
        pass
    assert raised.value.filename == str(tmp_path / ".weights.h5")


def test_files_that_belong_together_take_their_places_when_all_have_reached_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a computer that loses its power, or a process that is killed, has both of before or both of now."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        order.append(f"flush {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        order.append(f"replace {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    with whole_files(tmp_path / "one", tmp_path / "other") as (one, other):
        one.write_text("1")
        other.write_text("12")
    assert order == ["flush 1", "flush 2", "replace one", "replace other"]
    assert (tmp_path / "one").read_text() == "1" and (tmp_path / "other").read_text() == "12"


def test_a_folder_takes_its_place_when_its_files_have_reached_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one is deleted then, and a computer that loses its power would have neither."""
    order: list[str] = []
    replace = os.replace

    def replaced(source: Path, target: Path) -> None:
        order.append(f"replace {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append(f"flush {os.fstat(descriptor).st_size}"))
    monkeypatch.setattr(os, "replace", replaced)
    with whole_folder(tmp_path / "bundle", GRAPHS) as folder:
        (folder / "encoder.onnx").write_text("1")
        (folder / "golden").mkdir()
        (folder / "golden" / "cat.png").write_text("12")
    assert sorted(order[:-1]) == ["flush 1", "flush 2"] and order[-1] == "replace bundle"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_tell_what_has_reached_the_disk_is_written_to(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some on networks: nothing could be written to them."""

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    write_whole(tmp_path / "one", "1")
    assert (tmp_path / "one").read_text() == "1"
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_whole(tmp_path / "one", "2")
    assert (tmp_path / "one").read_text() == "1"


def test_what_windows_lets_nobody_rename_for_a_moment_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and folders, while a virus scanner has them open: the command ended."""
    real, tried = os.replace, []

    def busy(source: Path, target: Path) -> None:
        tried.append(target)
        if len(tried) % 2:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr("caplet.output.sys", SimpleNamespace(platform="win32"))
    write_whole(tmp_path / "one", "1")
    with whole_folder(tmp_path / "bundle", GRAPHS) as folder:
        (folder / "encoder.onnx").touch()
    assert (tmp_path / "one").read_text() == "1" and (tmp_path / "bundle" / "encoder.onnx").exists()
    assert tried == [tmp_path / "one"] * 2 + [tmp_path / "bundle"] * 2


def test_of_files_that_belong_together_a_failure_leaves_all_old_ones(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "other"]
    for path in paths:
        path.write_text("old")

    def interrupted() -> None:
        with whole_files(*paths) as (one, _):
            one.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(FileNotFoundError), whole_files(*paths) as (one, _):
        one.write_text("new")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == paths


def test_an_interruption_between_two_renames_leaves_what_has_yet_to_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a killed process does; `checkpoint.is_half_saved` knows a run by it."""
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        replace(source, target)
        raise KeyboardInterrupt

    def write() -> None:
        with whole_files(tmp_path / "one", tmp_path / "other") as temporaries:
            for temporary in temporaries:
                temporary.write_text("new")

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other", "one"]


def test_what_a_killed_process_has_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".names.txt").write_text("half of the n")
    write_whole(tmp_path / "names.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["names.txt"]


def test_what_a_killed_process_has_left_of_a_folder_is_cleared(tmp_path: Path) -> None:
    """Killed while it wrote, or between putting the old folder aside and the new one in its place."""
    script = f"""
import os, sys
from pathlib import Path
from caplet_export import outputs
replace = os.replace
def killed(source, target):
    replace(source, target)
    if sys.argv[1] == "between":
        os._exit(9)
os.replace = killed
with outputs.whole_folder(Path({str(tmp_path / "run")!r}), outputs.RUN) as folder:
    for name in ("config.json", "vocabulary.txt", "decoder.weights.h5"):
        (folder / name).write_text(sys.argv[1])
    if sys.argv[1] == "while":
        os._exit(9)
"""
    for state, status in (("whole", 0), ("while", 9), ("between", 9), ("again", 0)):
        process = subprocess.run([sys.executable, "-c", script, state], capture_output=True, text=True)
        assert process.returncode == status, process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "config.json").read_text() == "again"


def test_what_fails_in_the_block_is_said_as_it_is(tmp_path: Path) -> None:
    """Also where that is an OSError, as of features that cannot be read."""
    with pytest.raises(StoreError, match=r"^features: damaged$"), whole_folder(tmp_path / "run", RUN):
        raise StoreError("features: damaged")
    assert not list(tmp_path.iterdir())


def test_an_old_folder_that_a_killed_process_could_not_remove_is_cleared(tmp_path: Path) -> None:
    """Killed when the new one stood in its place: then both are there."""
    for folder in (tmp_path / "run", tmp_path / ".run.caplet-export.old"):
        folder.mkdir()
        for name in RUN[0]:
            (folder / name).write_text("old")
    with whole_folder(tmp_path / "run", RUN) as temporary:
        (temporary / "config.json").write_text("new")
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    assert (tmp_path / "run" / "config.json").read_text() == "new"


def test_a_place_that_may_not_be_written_to_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # file modes do not stop root
    with pytest.raises(ExportError, match="not a folder that can be written to"):
        check_folder(tmp_path / "run", RUN)


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A run folder, whose files hold `old`."""
    run = tmp_path / "run"
    with whole_folder(run, RUN) as folder:
        for name in ("config.json", "vocabulary.txt", "decoder.weights.h5"):
            (folder / name).write_text("old")
    return run


@pytest.mark.parametrize("error", [OSError("in use"), KeyboardInterrupt()])
def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    old_run: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if source.name.endswith(".new"):
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((ExportError, KeyboardInterrupt)) as raised, whole_folder(old_run, RUN):
        pass
    assert str(raised.value) == (f"{old_run}: cannot write: in use" if isinstance(error, OSError) else "")
    assert list(old_run.parent.iterdir()) == [old_run] and (old_run / "config.json").read_text() == "old"


def test_an_old_folder_that_a_killed_process_has_put_aside_comes_back_though_the_next_one_fails(old_run: Path) -> None:
    os.replace(old_run, old_run.with_name(".run.caplet-export.old"))
    with pytest.raises(ExportError, match="no photo"), whole_folder(old_run, RUN):
        raise ExportError("no photo")
    assert list(old_run.parent.iterdir()) == [old_run] and (old_run / "config.json").read_text() == "old"


@pytest.mark.parametrize(("moved", "left"), [(".old", "old"), (".new", "new")])
def test_an_interruption_when_a_folder_has_just_been_moved_leaves_one_in_place(
    old_run: Path, monkeypatch: pytest.MonkeyPatch, moved: str, left: str
) -> None:
    replace, due = os.replace, [KeyboardInterrupt()]

    def interrupted(source: Path, target: Path) -> None:
        replace(source, target)
        if moved in (source.suffix, target.suffix) and due:
            raise due.pop()

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(old_run, RUN) as folder:
        (folder / "config.json").write_text("new")
    assert (old_run / "config.json").read_text() == left
    if left == "old":
        assert list(old_run.parent.iterdir()) == [old_run]


def test_what_is_read_is_not_replaced_under_its_name_in_another_case(
    old_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS; here by links that are not followed."""
    (tmp_path / "TMP").symlink_to(tmp_path)
    (tmp_path / "Config.json").hardlink_to(old_run / "config.json")
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    other = tmp_path / "TMP" / "run"
    for source in (old_run, old_run / "config.json"):
        with pytest.raises(ExportError, match="would replace what is read"):
            check_folder(other, RUN, [source])
    with pytest.raises(ExportError, match="would replace what is read"):
        check_file(tmp_path / "Config.json", frozenset(), [old_run / "config.json"])
    monkeypatch.chdir(old_run)
    with pytest.raises(ExportError, match="the working folder"):
        check_folder(other, RUN)


def test_a_run_with_what_a_killed_process_has_left_in_it_is_still_one(tmp_path: Path) -> None:
    for name in ("config.json", "vocabulary.txt", "decoder.weights.h5", ".resume.npz"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).touch()
    assert check_folder(tmp_path / "run", RUN) == tmp_path.resolve() / "run"


def test_a_name_that_is_not_utf_8_is_written_as_it_is(tmp_path: Path) -> None:
    write_whole(tmp_path / "names.txt", "caf\udce9.jpg\n")  # as `os.fsdecode` keeps it
    assert (tmp_path / "names.txt").read_bytes() == b"caf\xe9.jpg\n"


@pytest.mark.parametrize(
    "content",
    [None, b"", b'{"results": {}, "scorer": "x"}', b'{"scorer": "", "results": {}}\nmore\n'],
    ids=["nothing", "empty", "a result", "lines"],
)
def test_a_file_is_written_where_nothing_is_lost(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "out.json").write_bytes(content)
    check_file(tmp_path / "out.json", frozenset({"scorer", "results"}))


@pytest.mark.parametrize(
    "content", [b"\xff\xd8\xff\xe0 photo", b"a.jpg#0\tA dog .\n", b'{"scorer": 1}', b"[]", b"[" * 200_000, b"3"]
)
def test_a_file_of_somebody_elses_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out.json").write_bytes(content)
    with pytest.raises(ExportError, match="not a file that caplet-export writes here"):
        check_file(tmp_path / "out.json", frozenset({"scorer", "results"}))


def test_a_folder_a_pipe_and_what_is_read_are_no_place_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"scorer": 1}')
    (tmp_path / "link.json").symlink_to("a.json")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    for name, said in ((".", "is a folder"), ("pipe", "not a file that"), ("link.json", "read"), ("circle", "circle")):
        with pytest.raises(ExportError, match=said):
            check_file(tmp_path / name, frozenset({"scorer"}), [tmp_path / "a.json"])
    with pytest.raises(ExportError, match="read"):
        check_file(tmp_path / "a.json", frozenset({"scorer"}), [tmp_path / "link.json"])
