"""The feature store: nothing half-written is ever taken for whole, and nothing whole is lost."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caplet.errors import ImageError
from caplet_export import checkpoint, features
from caplet_export.cli import main
from caplet_export.config import Config, ModelConfig
from caplet_export.errors import ExportError, StoreError
from caplet_export.features import (
    FeatureStore,
    StoredFeatures,
    StoreSource,
    extract,
    open_store,
    weights_digest,
    whole_in_another_precision,
)
from caplet_export.outputs import RUN
from command_line import Terminal
from tiny_flickr8k import write_split, write_tiny_flickr8k

SOURCE = StoreSource("digest", locations=2, channels=3)
NAMES = [f"{number}.jpg" for number in range(10)]


def load(name: str) -> NDArray[np.uint8]:
    return np.full((2, 4, 3), int(name.split(".")[0]), np.uint8)


def run(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    return [pixels[:, :2, 0, :].astype(np.float32)]


def run_both(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """For two blocks, of which the second sees a hundred more."""
    return [*run(pixels), *(features + 100 for features in run(pixels))]


def fill(
    folder: Path, names: list[str] = NAMES, source: StoreSource = SOURCE, **changes: object
) -> list[tuple[str, str | None]]:
    arguments: dict[str, object] = {"load": load, "run": run, "batch_size": 3, **changes}
    return list(extract({folder: source}, names, **arguments))  # type: ignore[arg-type]


def assert_whole(folder: Path) -> None:
    store = FeatureStore(folder)
    assert sorted(store.names) == sorted(NAMES)
    for name in NAMES:
        assert (store[name] == int(name.split(".")[0])).all()


def test_features_are_found_by_image_name(tmp_path: Path) -> None:
    assert fill(tmp_path) == [(name, None) for name in NAMES]
    assert_whole(tmp_path)
    store = FeatureStore(tmp_path)
    assert store[NAMES[4]].dtype == np.float16
    assert store[NAMES[4]].shape == (2, 3)
    assert store.gather(NAMES[:4]).shape == (4, 2, 3)
    with pytest.raises(StoreError, match=r"no features of other\.jpg"):
        store["other.jpg"]


def both_blocks(folder: Path) -> dict[Path, StoreSource]:
    return {folder / f"{block}-plain": replace(SOURCE, layer=block) for block in ("mixed10", "mixed9")}


def assert_both_whole(folder: Path) -> StoredFeatures:
    both = open_store(folder, ("mixed10", "mixed9"), "plain")
    assert both.source.channels == 6
    for name in NAMES:
        assert name in both
        own = int(name.split(".")[0])
        assert both[name].tolist() == [[own] * 3 + [own + 100] * 3] * 2
    return both


def test_one_pass_fills_the_stores_of_several_blocks(tmp_path: Path) -> None:
    results = list(extract(both_blocks(tmp_path), NAMES, load, run_both, batch_size=3))
    assert results == [(name, None) for name in NAMES]
    assert_both_whole(tmp_path)


def test_a_store_that_is_ahead_of_the_other_gets_no_photo_twice(tmp_path: Path) -> None:
    """As after a death between the two, or where a second block is wanted later."""
    (first, source), _ = both_blocks(tmp_path).items()
    list(extract({first: source}, NAMES[:4], load, run, batch_size=3))
    list(extract(both_blocks(tmp_path), NAMES, load, run_both, batch_size=3))
    assert_both_whole(tmp_path)
    for folder in both_blocks(tmp_path):
        assert sorted(FeatureStore(folder).names) == sorted(NAMES)


def test_stores_of_several_blocks_are_read_as_one(tmp_path: Path) -> None:
    orders = [NAMES, NAMES[::-1]]
    for number, ((folder, source), order) in enumerate(zip(both_blocks(tmp_path).items(), orders, strict=True)):
        list(extract({folder: source}, order, load, lambda pixels, n=number: [run_both(pixels)[n]]))
    both = assert_both_whole(tmp_path)
    np.testing.assert_array_equal(both.gather(NAMES[:2])[1], both[NAMES[1]])
    assert "other.jpg" not in both
    assert isinstance(open_store(tmp_path, ("mixed9",), "plain"), FeatureStore)


def test_a_photo_that_one_block_lacks_is_lacking(tmp_path: Path) -> None:
    def broken(name: str) -> NDArray[np.uint8]:
        if name == NAMES[2]:
            raise ImageError(name, "not a photo")
        return load(name)

    for (folder, source), read in zip(both_blocks(tmp_path).items(), (load, broken), strict=True):
        list(extract({folder: source}, NAMES, read, run))
    both = open_store(tmp_path, ("mixed10", "mixed9"), "plain")
    assert both.skipped == {NAMES[2]} and NAMES[2] not in both


def test_a_store_under_another_blocks_name_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "mixed9-plain")
    with pytest.raises(StoreError, match="stored at block mixed10, not mixed9"):
        open_store(tmp_path, ("mixed9",), "plain")


def test_rows_are_mapped_not_read(tmp_path: Path) -> None:
    fill(tmp_path)
    row = FeatureStore(tmp_path)[NAMES[0]]
    assert isinstance(row.base, np.memmap) or isinstance(row, np.memmap)


def test_mirrored_view(tmp_path: Path) -> None:
    source = StoreSource("digest", view="flip", locations=1, channels=2)
    photo = np.zeros((1, 2, 3), np.uint8)
    photo[0, 0] = 7
    list(extract({tmp_path: source}, ["a"], lambda _: photo, lambda pixels: [pixels[:, :, :, 0].astype(np.float32)]))
    assert FeatureStore(tmp_path)["a"].tolist() == [[0, 7]]


def test_an_unreadable_image_costs_no_other(tmp_path: Path) -> None:
    def load_some(name: str) -> NDArray[np.uint8]:
        if name == "4.jpg":
            raise ImageError(name, "cannot identify image file")
        return load(name)

    results = fill(tmp_path, load=load_some)
    assert dict(results)["4.jpg"] == "4.jpg: cannot identify image file"
    store = FeatureStore(tmp_path)
    assert len(store.names) == 9
    assert store.skipped == {"4.jpg"}


def test_a_mistake_of_our_own_is_no_unreadable_image(tmp_path: Path) -> None:
    def mistaken(name: str) -> NDArray[np.uint8]:
        raise TypeError("missing argument")

    with pytest.raises(TypeError, match="missing argument"):
        fill(tmp_path, load=mistaken)
    with pytest.raises(StoreError, match="has not finished"):
        FeatureStore(tmp_path)


def test_a_finished_store_is_not_computed_again(tmp_path: Path) -> None:
    fill(tmp_path)

    def never(_: object) -> NDArray[np.float32]:
        raise AssertionError("computed again")

    fill(tmp_path, run=never)
    assert_whole(tmp_path)


def test_macos_has_no_fdatasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fdatasync", raising=False)
    fill(tmp_path)
    assert_whole(tmp_path)


def test_a_drive_may_not_tell_what_has_reached_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "fsync", fail)
    fill(tmp_path)
    assert_whole(tmp_path)


def test_windows_takes_rows_for_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary, real, flags = 0x8000, os.open, {}  # which says nothing on Linux

    def watched(path: Path, how: int, mode: int = 0o777, **options: object) -> int:
        flags[Path(path).name] = how
        return real(path, how, mode, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "O_BINARY", binary, raising=False)
    monkeypatch.setattr(os, "open", watched)
    fill(tmp_path)
    assert flags["rows.f16"] & flags["names.txt"] & binary


@pytest.mark.parametrize("cut_rows", [0, 1, 5])
@pytest.mark.parametrize("cut_names", [0, 1, 9])
def test_a_store_cut_anywhere_is_mended(tmp_path: Path, cut_rows: int, cut_names: int) -> None:
    fill(tmp_path)
    for name, cut in (("rows.f16", cut_rows), ("names.txt", cut_names)):
        path = tmp_path / name
        os.truncate(path, path.stat().st_size - cut)
    (tmp_path / "skipped.txt").unlink()
    with pytest.raises(StoreError, match="has not finished"):
        FeatureStore(tmp_path)
    fill(tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize("writes_before", range(8))
def test_a_full_disk_is_one_clear_error_and_loses_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes_before: int
) -> None:
    real, left = os.write, [writes_before]

    def write(descriptor: int, data: bytes) -> int:
        if not left[0]:
            # A disk that fills up takes a part first.
            real(descriptor, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return real(descriptor, data)

    monkeypatch.setattr(features.os, "write", write)
    with pytest.raises(StoreError, match="cannot write features: No space left"):
        fill(tmp_path)
    monkeypatch.undo()
    with pytest.raises(StoreError):
        FeatureStore(tmp_path)
    computed: list[int] = []

    def counted(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        computed.append(len(pixels))
        return run(pixels)

    fill(tmp_path, run=counted)
    assert_whole(tmp_path)
    # Whole batches before the one that failed are kept, and of that one the names that were written whole.
    lost = len(NAMES) - 3 * (writes_before // 2)
    assert lost - 2 <= sum(computed) <= lost


def test_killed_at_random_moments_it_ends_whole(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path[:0] = sys.argv[2:]\n"
        "from test_features import *\n"
        "slow = lambda pixels: (time.sleep(0.02), run(pixels))[1]\n"
        "list(extract({Path(sys.argv[1]): SOURCE}, NAMES, load, slow, batch_size=1))\n"
    )
    folder = tmp_path / "store"
    command = [sys.executable, "-c", script, str(folder), *map(str, Path(__file__).parents[:2])]
    for attempt in range(20):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 20
        before = len((folder / "names.txt").read_bytes()) if (folder / "names.txt").exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            path = folder / "names.txt"
            if path.exists() and len(path.read_bytes()) > before + 6 * (attempt % 3):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        if process.wait() == 0:
            break
    assert process.returncode == 0
    assert_whole(folder)


def test_features_of_another_source_are_not_mixed_in(tmp_path: Path) -> None:
    fill(tmp_path)
    for source, said in (
        (replace(SOURCE, weights="other"), "weights=digest"),
        (replace(SOURCE, extractor="x"), "extractor=none"),
    ):
        with pytest.raises(StoreError, match=f"holds features of another source, {said}; use"):
            list(extract({tmp_path: source}, NAMES, load, run))


def test_a_store_stays_whole_where_another_is_refused(tmp_path: Path) -> None:
    whole, other = both_blocks(tmp_path).items()
    list(extract(dict([whole]), NAMES, load, run))
    list(extract({other[0]: replace(other[1], weights="other")}, NAMES, load, run))
    with pytest.raises(StoreError, match="another source"):
        list(extract(dict([whole, other]), NAMES, load, run_both))
    assert_whole(whole[0])


def test_what_a_store_does_not_say_of_itself_is_no_difference(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(StoreError, match="holds features of another source, weights=digest; use"):
        fill(tmp_path, source=replace(SOURCE, weights="other", precision="float32"))


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_two_processes_do_not_write_to_one_store(tmp_path: Path) -> None:
    """Each would write its rows over those of the other, under names that stay."""
    import fcntl

    other = os.open(tmp_path, os.O_RDONLY)  # locks are of descriptors, so this one is as good as another process's
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ExportError, match="another caplet-export is writing to it"):
        fill(tmp_path)
    assert not list(tmp_path.iterdir())
    os.close(other)
    fill(tmp_path)
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another process may go on while this one fills other stores
    os.close(other)


def test_rows_of_two_precisions_are_not_mixed(tmp_path: Path) -> None:
    """A store that does not say, as up to release 0.9, goes on as before."""
    exact, rough = (replace(SOURCE, precision=precision) for precision in ("float32", "bfloat16"))
    fill(tmp_path / "new", source=exact)
    with pytest.raises(StoreError, match="another source"):
        fill(tmp_path / "new", source=rough)
    fill(tmp_path / "old")
    fill(tmp_path / "old", source=rough)


@pytest.fixture
def small_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of Inception two blocks of one convolution each, for photos of 16×16."""
    import keras  # here, since the processes that are killed above import this file, and TensorFlow takes seconds

    from caplet_export import inception

    def build(*_: object) -> keras.Model:
        pixels = keras.Input((16, 16, 3))
        below = keras.layers.Conv2D(3, 8, strides=8, name="mixed9")(pixels)
        return keras.Model(pixels, keras.layers.Conv2D(4, 1, name="mixed10")(below))

    monkeypatch.setattr(inception, "INPUT_SIZE", 16)
    monkeypatch.setattr(inception, "build_extractor", build)


@pytest.mark.usefixtures("small_inception")
def test_more_views_may_be_stored_in_another_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is whole is left as it is, whatever it was computed in, and said to be; what is not is not mixed."""
    data, folder = write_tiny_flickr8k(tmp_path / "data", train=3, dev=1), tmp_path / "features"
    (data / "Flicker8k_Dataset" / "0000_square.jpg").write_bytes(b"no photo")
    command = ["features", str(folder), "--data", str(data), "--layer", "mixed10", "mixed9"]
    assert main(command) == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*")}
    capsys.readouterr()
    rougher = [*command, "--views", "flip", "crop3", "--precision", "bfloat16"]
    assert main(rougher) == 0
    assert capsys.readouterr().out.splitlines() == [
        *(f"{folder}/{block}-plain: 3 of 4 photos, there already, in float32" for block in ("mixed10", "mixed9")),
        *(f"{folder}/{block}-flip: 2 of 3 photos, there already, in float32" for block in ("mixed10", "mixed9")),
        *(f"{folder}/{block}-crop3: 2 of 3 photos" for block in ("mixed10", "mixed9")),
    ]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert FeatureStore(folder / "mixed9-crop3").source.precision == "bfloat16"
    for unfinished in ("mixed9-flip", "mixed10-plain"):
        (folder / unfinished / "skipped.txt").unlink()
        assert main(rougher) == 1
        assert f"{unfinished.replace('mixed9', 'mixed10')}: holds features of another source" in capsys.readouterr().err


@pytest.mark.usefixtures("small_inception")
def test_the_command_computes_in_the_precision_and_the_batches_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caplet_export import inception

    built, sizes, build = [], [], inception.build_extractor

    def watched(*arguments: Any, batch_size: int) -> Any:
        sizes.append(batch_size)
        return extract(*arguments, batch_size=batch_size)

    monkeypatch.setattr(inception, "build_extractor", lambda *given: built.append(given) or build())
    monkeypatch.setattr(checkpoint, "load_extractor", lambda *given: built.append(given) or build())
    monkeypatch.setattr("caplet_export.verbs.features.extract", watched)
    (run := tmp_path / "run").mkdir()
    Config(model=ModelConfig(feature_block="mixed9")).save(run / "config.json")
    data = write_tiny_flickr8k(tmp_path / "data", train=1, dev=1)
    options = ["--data", str(data), "--views", "--precision", "bfloat16", "--batch-size", "7"]
    assert main(["features", str(tmp_path / "features"), *options]) == 0
    of_run = ["--run", str(run), "--encoder-weights", "imagenet"]
    assert main(["features", str(tmp_path / "by-run"), *options, *of_run]) == 0
    assert built == [("imagenet", "bfloat16"), (run, "imagenet", "bfloat16")]
    assert sizes == [7, 7]
    stores = {path.name for folder in ("features", "by-run") for path in (tmp_path / folder).iterdir()}
    assert stores == {"mixed10-plain", "mixed9-plain"}


@pytest.mark.usefixtures("small_inception")
def test_the_bar_counts_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first photo of a batch, it estimated a batch's time for each photo that is left."""

    def slow(_: Any, names: list[str], *__: Any, batch_size: int) -> Iterator[tuple[str, None]]:
        for first in range(0, len(names), batch_size):
            time.sleep(0.2)  # more than tqdm lets pass between two drawings
            yield from ((name, None) for name in names[first : first + batch_size])

    data = write_tiny_flickr8k(tmp_path / "data", train=6, dev=4)
    monkeypatch.setattr("caplet_export.verbs.features.extract", slow)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert main(["features", str(tmp_path / "features"), "--data", str(data), "--views", "--batch-size", "4"]) == 0
    assert re.findall(r"(\d+)/10 ", terminal.getvalue()) == ["0", "4", "8", "10"]


@pytest.mark.usefixtures("small_inception")
def test_the_bar_of_a_resumed_run_counts_no_photo_as_done_in_it_that_was_there_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They took no time, so the photos that are left seemed to take little."""

    def slow(_: Any, names: list[str], *__: Any, batch_size: int) -> Iterator[tuple[str, None]]:
        for number, name in enumerate(names):
            time.sleep(0.4 if number == 6 else 0)  # the only batch that is left
            yield name, None

    data = write_tiny_flickr8k(tmp_path / "data", train=6, dev=4)
    (store := tmp_path / "features" / "mixed10-plain").mkdir(parents=True)
    (store / "names.txt").write_text((data / "Flickr_8k.trainImages.txt").read_text())
    monkeypatch.setattr("caplet_export.verbs.features.extract", slow)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    command = ["features", str(tmp_path / "features"), "--data", str(data), "--views", "--batch-size", "4"]
    assert main(command) == 0
    shown = re.findall(r"(\d+)/10 [^\r]* ([\d.?]+)photo/s", terminal.getvalue())
    assert shown[0] == ("6", "?")
    assert {done for done, _ in shown[1:]} == {"10"}
    assert all(float(rate) <= 10 for _, rate in shown[1:])  # 4 photos in 0.4 seconds


@pytest.mark.usefixtures("small_inception")
def test_the_command_mixes_no_features_of_other_weights_or_of_a_runs_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from caplet_export import inception

    monkeypatch.setattr(checkpoint, "load_extractor", lambda *_: inception.build_extractor())
    (run := tmp_path / "run").mkdir()
    Config().save(run / "config.json")
    for path in (run / "extractor.npz", tmp_path / "others.h5"):
        path.write_bytes(b"weights")
    data, folder = write_tiny_flickr8k(tmp_path / "data", train=1, dev=1), tmp_path / "features"
    command = ["features", str(folder), "--data", str(data)]
    assert main(command) == 0
    for option, said in (("--encoder-weights", "weights=imagenet"), ("--run", "extractor=none")):
        given = run if option == "--run" else tmp_path / "others.h5"
        assert main([*command, option, str(given)]) == 1
        told = f"{folder}/mixed10-plain: holds features of another source, {said}; use another folder\n"
        assert capsys.readouterr().err == f"caplet-export features: {told}"


@pytest.mark.usefixtures("small_inception")
def test_defects_of_the_data_are_reported_with_their_lines_and_stop_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tiny_flickr8k(tmp_path / "data", train=8, dev=4)
    photos = data / "Flicker8k_Dataset"
    token_file = data / "Flickr8k.token.txt"
    token_file.write_text("no caption\n" + token_file.read_text() + "gone.jpg#0\tA dog .\nno tab#0 A dog\n")
    first = sorted(photos.iterdir())[0].name
    (photos / "broken.jpg").write_bytes(b"no photo")
    token_file.write_text(token_file.read_text() + "broken.jpg#0\tA dog .\n")
    names = (data / "Flickr_8k.trainImages.txt").read_text().split()
    write_split(data, "train", [*names, "absent.jpg", first, "broken.jpg"])
    assert main(["features", str(tmp_path / "features"), "--data", str(data)]) == 0
    errors = capsys.readouterr().err
    for said in (
        "Flickr8k.token.txt:1: not '<file>#<n>TAB<caption>'",
        "Flickr8k.token.txt:63: not '<file>#<n>TAB<caption>'",
        "Flickr_8k.trainImages.txt:9: image is not in",
        f"Flickr_8k.trainImages.txt:10: image is already in train: {first}",
        "gone.jpg",
        "left out broken.jpg",
    ):
        assert errors.count(said) == 1, f"{said}\n{errors}"
    assert "Traceback" not in errors
    assert FeatureStore(tmp_path / "features" / "mixed10-plain").skipped == {"broken.jpg"}


def test_a_run_is_no_folder_for_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run := tmp_path / "run").mkdir()
    for name in RUN[0]:
        (run / name).touch()
    data = write_tiny_flickr8k(tmp_path / "data", train=1, dev=1)
    assert main(["features", str(run), "--data", str(data)]) == 1
    message = f"caplet-export features: {run}: is a run; give the stores a folder of their own\n"
    assert capsys.readouterr().err == message
    assert {path.name for path in run.iterdir()} == RUN[0]


@pytest.mark.usefixtures("small_inception")
def test_where_no_photo_can_be_read_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After each of them was named, once for all views."""
    data = write_tiny_flickr8k(tmp_path / "data", train=1, dev=1)
    photos = sorted((data / "Flicker8k_Dataset").iterdir())
    for photo in photos:
        photo.write_bytes(b"no photo")
    assert main(["features", str(tmp_path / "features"), "--data", str(data)]) == 1
    *left_out, error = capsys.readouterr().err.splitlines()
    assert [line.partition("left out ")[2].partition(":")[0] for line in left_out] == [photo.name for photo in photos]
    assert error == f"caplet-export features: {data}: not one photo could be read"


@pytest.mark.usefixtures("small_inception")
@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO, errno.ENOENT], ids=errno.errorcode.get)
def test_where_the_storage_of_photos_fails_none_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """As a Google Drive that Colab loses, or a disk that is unplugged: a store without most photos was called whole."""
    data = write_tiny_flickr8k(tmp_path / "data", train=6, dev=2)
    images, opened = data / "Flicker8k_Dataset", []

    def fail(path: str, *mode: str) -> io.BufferedReader:
        opened.append(path)
        if len(opened) > 4:
            if number == errno.ENOENT and images.is_dir():
                images.rename(tmp_path / "unplugged")
            raise OSError(number, os.strerror(number))
        return open(path, "rb")

    monkeypatch.setattr("caplet.image_source.open", fail, raising=False)
    command = ["features", str(tmp_path / "features"), "--data", str(data), "--views", "--batch-size", "3"]
    assert main(command) == 1
    (error,) = capsys.readouterr().err.splitlines()
    cause = "no such file" if number == errno.ENOENT else f"cannot be read ({os.strerror(number)})"
    assert error.startswith(f"caplet-export features: {opened[4]}: {cause}: the disk or the network failed; ")
    store = tmp_path / "features" / "mixed10-plain"
    with pytest.raises(StoreError, match="has not finished"):
        FeatureStore(store)
    monkeypatch.undo()
    if number == errno.ENOENT:
        (tmp_path / "unplugged").rename(images)
    assert len((store / "names.txt").read_text().splitlines()) == 3


@pytest.mark.usefixtures("small_inception")
def test_a_disk_that_features_will_not_fit_on_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after the hours that it takes to fill it; what is there already takes no more."""
    data, folder = write_tiny_flickr8k(tmp_path / "data", train=3, dev=1), tmp_path / "some" / "features"
    command = ["features", str(folder), "--data", str(data), "--layer", "mixed10", "mixed9"]
    size = 2 * 4 * (4 + 3)  # of a photo: float16, four locations, channels of both blocks
    usage = shutil.disk_usage
    free = iter([4 * size, 3 * size - 1, 3 * size])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=next(free)))
    assert main([*command, "--views"]) == 0
    assert capsys.readouterr().err == ""
    assert main(command) == 0
    told = f"caplet-export features: {folder}: features need 0.0 GB more, but only 0.0 GB is free\n"
    assert capsys.readouterr().err == told
    shutil.rmtree(folder / "mixed9-flip")
    shutil.rmtree(folder / "mixed10-flip")
    assert main(command) == 0
    assert capsys.readouterr().err == ""


def test_what_another_precision_does_not_excuse(tmp_path: Path) -> None:
    """A photo that is missing, other weights; and where nothing differs, what could not be read is tried again."""
    exact, rough = (replace(SOURCE, precision=precision) for precision in ("float32", "bfloat16"))
    fill(tmp_path, source=exact)
    assert [store.folder for store in whole_in_another_precision({tmp_path: rough}, NAMES)] == [tmp_path]
    assert not whole_in_another_precision({tmp_path: exact}, NAMES)
    assert not whole_in_another_precision({tmp_path: rough}, [*NAMES, "new.jpg"])
    assert not whole_in_another_precision({tmp_path: replace(rough, weights="other")}, NAMES)
    assert not whole_in_another_precision({tmp_path: rough, tmp_path / "gone": rough}, NAMES)


def spoil_json(folder: Path) -> None:
    (folder / "store.json").write_text("{")


def spoil_format(folder: Path) -> None:
    (folder / "store.json").write_text('{"format": 99, "weights": ""}')


def spoil_rows(folder: Path) -> None:
    (folder / "rows.f16").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"), [(spoil_json, "damaged"), (spoil_format, "another version"), (spoil_rows, "fewer than")]
)
def test_a_damaged_store_is_refused(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    fill(tmp_path)
    spoil(tmp_path)
    with pytest.raises(StoreError, match=said):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("spoil", [spoil_json, spoil_format])
def test_a_store_that_no_command_can_go_on_with_is_to_be_deleted(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """`features`, given again, refuses it too."""
    fill(tmp_path)
    spoil(tmp_path)
    with pytest.raises(StoreError, match=f"; delete {tmp_path} and extract again$"):
        fill(tmp_path)


def test_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no feature store here"):
        FeatureStore(tmp_path / "nowhere")


def test_weights_are_known_by_their_digest(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"abc")
    assert weights_digest(str(tmp_path / "w")).startswith("ba7816bf")
    assert weights_digest("imagenet") == "imagenet"
    with pytest.raises(StoreError, match="No such file"):
        weights_digest(str(tmp_path / "gone"))
