"""A captioner in many threads, handed to other processes, forked, pickled and copied."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import multiprocessing
import operator
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import caplet
from caplet import BundleError, CapletError, Captioner, ImageNotFoundError, InferenceError
from caplet.sessions import _after_fork
from tiny_bundle import rehash, write_tiny_bundle


def test_one_captioner_shared_by_eight_threads(captioner: Captioner, paths: list[Path], texts: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda path: captioner.caption(path).text, paths * 25)) == texts * 25


def test_eight_threads_may_also_caption_many(captioner: Captioner, paths: list[Path], texts: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: [str(c) for c in captioner.caption_many(paths * 2, batch_size=3)], range(8)):
            assert found == texts * 2


@pytest.mark.parametrize("method", [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()])
def test_a_captioner_can_be_handed_to_another_process(
    method: str, captioner: Captioner, paths: list[Path], texts: list[str]
) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        caption = pool.submit(operator.methodcaller("caption", paths[1]), captioner).result(timeout=60)
        assert caption.text == texts[1]
        error = pool.submit(operator.methodcaller("caption", "nowhere.jpg"), captioner).exception(timeout=60)
        assert isinstance(error, ImageNotFoundError)


# Forks.


FORK = """
import gc, os, sys, time
from caplet import Captioner
captioner = Captioner(sys.argv[1], threads=3)
text = captioner.caption(sys.argv[2]).text
for use in ("none", "caption", "drop"):
    child = os.fork()
    if child == 0:
        if use == "caption":
            assert [c.text for c in captioner.caption_many([sys.argv[2]] * 3)] == [text] * 3
        if use == "drop":
            del captioner
            gc.collect()
        sys.exit(7)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.02)
    print(os.waitstatus_to_exitcode(ended[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_exits_as_any_process_does(tiny_bundle: Path, photos: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tiny_bundle), str(photos / "cat.jpg")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "7\n7\n7\n"


C_FORK = """
import ctypes, os, sys
from caplet import Captioner
captioner = Captioner(sys.argv[1], threads=3)
text = captioner.caption(sys.argv[2]).text
for used in (False, True):
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        if used:
            assert captioner.caption(sys.argv[2]).text == text
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_that_was_forked_behind_pythons_back_may_caption_and_exits(tiny_bundle: Path, photos: Path) -> None:
    """As uWSGI does by default: nothing that is registered to be done at a fork is done."""
    command = [sys.executable, "-c", C_FORK, str(tiny_bundle), str(photos / "cat.jpg")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.communicate(timeout=60)[0] == "7\n7\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


KEPT_ERROR = """
import os, sys
from caplet import BundleError, Captioner
try:
    Captioner(sys.argv[1], threads=3)
except BundleError as error:
    kept = error
    child = os.fork()
    if child == 0:
        sys.exit(7)
    print(kept.cause[:11], os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(("decoder", "cause"), [("another graph", "has the inp"), ("no graph", "onnxruntime")])
def test_a_forked_child_may_have_the_error_of_a_captioner_that_failed(decoder: str, cause: str, tmp_path: Path) -> None:
    """The error holds the frames that it came through, and these the encoder's session, which was loaded."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    graph = (bundle / "encoder.onnx").read_bytes()
    (bundle / "decoder.onnx").write_bytes(graph if decoder == "another graph" else graph.replace(b"Tanh", b"Tan!"))
    rehash(bundle)
    command = [sys.executable, "-c", KEPT_ERROR, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{cause} 7\n"


RELOADED = """
import importlib, os, signal, sys
import caplet.sessions
captioner = caplet.Captioner(sys.argv[1], threads=3)
text = captioner.caption(sys.argv[2]).text
importlib.reload(caplet.sessions)
child = os.fork()
if child == 0:
    signal.alarm(20)
    assert captioner.caption(sys.argv[2]).text == text
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_may_be_forked_after_a_notebook_has_reloaded_the_modules(tiny_bundle: Path, photos: Path) -> None:
    command = [sys.executable, "-c", RELOADED, str(tiny_bundle), str(photos / "cat.jpg")]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "7\n"


PLOT_AT_A_FORK = """
import os, sys, threading
from caplet import Captioner
import caplet.image_formats

caption = Captioner(sys.argv[1], threads=1).caption(sys.argv[2])
caplet.image_formats._import_all()  # so that little else is imported at the fork

class Slow:  # comes before the usual finders of modules
    def find_spec(self, name, path, target=None):
        if name == "caplet.explain":
            importing.set()
            forking.wait(1)  # ends early only if the fork does not wait for this import

importing, forking = threading.Event(), threading.Event()
sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=caption.plot, args=sys.argv[2:])
thread.start()
importing.wait()
child = os.fork()
forking.set()
if child == 0:
    import signal
    signal.alarm(20)
    caption.plot(sys.argv[2])
    os._exit(7)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_may_draw_whatever_its_parents_threads_do(tiny_bundle: Path, photos: Path) -> None:
    command = [sys.executable, "-c", PLOT_AT_A_FORK, str(tiny_bundle), str(photos / "cat.jpg")]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "7\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_may_caption_drop_and_end(
    tiny_bundle: Path, photos: Path, texts: list[str], tmp_path: Path
) -> None:
    captioner = Captioner(tiny_bundle, threads=3)
    captioner.caption(photos / "cat.jpg")
    child = os.fork()
    if child == 0:
        # Nothing may leave this block: the child is a copy of the whole test run.
        try:
            with ThreadPoolExecutor(2) as pool:
                found = set(pool.map(lambda _: captioner.caption(photos / "cat.jpg").text, range(4)))
            del captioner  # onnxruntime would wait here for threads that exist in the parent only
            (tmp_path / "out").write_text("\n".join(found))
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.02)
    assert (tmp_path / "out").read_text() == texts[1]
    assert captioner.caption(photos / "cat.jpg").text == texts[1]  # the parent can go on


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_cannot_go_on_with_what_its_parent_began(
    captioner: Captioner, paths: list[Path], texts: list[str]
) -> None:
    found = captioner.caption_many(paths * 4, batch_size=1)
    assert next(found).text == texts[0]
    child = os.fork()
    if child == 0:
        # Nothing may leave this block: the child is a copy of the whole test run.
        status = 1
        try:
            signal.alarm(60)  # it would wait for the parent's threads for ever
            next(found)
        except InferenceError as error:
            status = 0 if "call it in each process" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert [caption.text for caption in found] == (texts * 4)[1:]


def test_in_another_process_the_graphs_are_opened_once(
    tiny_bundle: Path, photos: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a forked child, but in this process: all threads wait for one of them to open the graphs."""
    captioner = Captioner(tiny_bundle, threads=1)
    with caplet.sessions._reopening:  # as a thread may have it that is not there after the fork
        _after_fork()
        assert not caplet.sessions._reopening.locked()
    opened = 0
    open_graphs = captioner.sessions._open

    def counted() -> None:
        nonlocal opened
        opened += 1
        open_graphs()

    monkeypatch.setattr(captioner.sessions, "_open", counted)
    monkeypatch.setattr("caplet.sessions.os.getpid", lambda: 1)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: captioner.caption(photos / "cat.jpg").text, range(8))) == {texts[1]}
    assert opened == 1


def test_a_fork_keeps_no_graph_of_the_child_itself(tiny_bundle: Path) -> None:
    captioner = Captioner(tiny_bundle, threads=1)
    graph = weakref.ref(captioner.sessions._encoder)
    _after_fork()
    del captioner
    gc.collect()
    assert graph() is None


@pytest.mark.parametrize("whole", [False, True], ids=["one graph", "the whole bundle"])
def test_another_process_opens_no_other_graphs(
    whole: bool, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the fork and the child's first photo the files may be replaced, as by an update."""
    captioner = Captioner(write_tiny_bundle(tmp_path / "bundle"), threads=1)
    other = write_tiny_bundle(tmp_path / "other", seed=7)
    for file in other.glob("*.*") if whole else [other / "decoder.onnx"]:
        shutil.copy(file, tmp_path / "bundle" / file.name)
    assert captioner.caption(photos / "cat.jpg")
    _after_fork()  # as at the fork
    monkeypatch.setattr("caplet.sessions.os.getpid", lambda: 1)
    with pytest.raises(BundleError, match="is not the model that was loaded" if whole else "has been altered"):
        captioner.caption(photos / "cat.jpg")


def test_in_another_process_too_an_altered_graph_is_used_where_nothing_is_verified(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    shutil.copy(write_tiny_bundle(tmp_path / "other", seed=7) / "decoder.onnx", bundle)
    captioner = Captioner(bundle, threads=1, verify=False)
    text = captioner.caption(photos / "cat.jpg").text
    _after_fork()  # as at the fork
    monkeypatch.setattr("caplet.sessions.os.getpid", lambda: 1)
    assert captioner.caption(photos / "cat.jpg").text == text


# Pickles and copies.


def test_pickled_it_comes_back_the_same(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    captioner = Captioner(tiny_bundle.name, threads=1, verify=False)
    data = pickle.dumps(captioner)
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert again.threads == 1
    assert not again.bundle.verified
    assert again.bundle.digest == captioner.bundle.digest
    assert again.caption(photos / "cat.jpg") == captioner.caption(photos / "cat.jpg")
    assert repr(str(tiny_bundle)) in repr(again)


def test_pickled_it_has_the_providers_that_it_was_made_with(tiny_bundle: Path) -> None:
    options: dict[str, Any] = {}
    providers = [("CPUExecutionProvider", options)]
    captioner = Captioner(tiny_bundle, threads=1, providers=providers)
    providers.clear()
    options["device_id"] = lambda: 0  # which cannot be pickled
    pickle.loads(pickle.dumps(captioner))


def test_handed_over_with_every_photo_it_is_loaded_once(tiny_bundle: Path, tmp_path: Path) -> None:
    """As by `executor.map(captioner.caption, photos)`, for which a pool pickles the method again and again."""
    captioner = Captioner(tiny_bundle, threads=1)
    again = pickle.loads(pickle.dumps(captioner))
    assert pickle.loads(pickle.dumps(captioner.caption)).__self__ is again
    for other in (
        Captioner(tiny_bundle, threads=2),
        Captioner(tiny_bundle, threads=1, verify=False),
        Captioner(tiny_bundle, threads=1, providers=[("CPUExecutionProvider", {"a": "b"})]),
        Captioner(write_tiny_bundle(tmp_path / "bundle", seed=1), threads=1),
    ):
        different = pickle.loads(pickle.dumps(other))
        assert different is not again and different.bundle == other.bundle and different.threads == other.threads


def test_after_its_files_have_changed_it_is_loaded_again(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    before = pickle.loads(pickle.dumps(Captioner(folder, threads=1)))
    shutil.rmtree(folder)
    write_tiny_bundle(folder, seed=1)
    after = pickle.loads(pickle.dumps(Captioner(folder, threads=1)))
    assert before.bundle.digest != after.bundle.digest


class Shouting(Captioner):
    def caption(self, *arguments: Any, **options: Any) -> Any:
        return super().caption(*arguments, **options).text.upper()


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda captioner: pickle.loads(pickle.dumps(captioner))])
def test_a_subclass_comes_back_as_one(way: Any, tiny_bundle: Path, photos: Path, texts: list[str]) -> None:
    again = way(Shouting(tiny_bundle, threads=1))
    assert type(again) is Shouting and again.threads == 1
    assert again.caption(photos / "cat.jpg") == texts[1].upper()


def test_sessions_that_are_open_serve_another_captioner(tiny_bundle: Path, photos: Path) -> None:
    sessions = Captioner(tiny_bundle, threads=3, verify=False).sessions
    captioner = Captioner(sessions)
    assert captioner.sessions is sessions and (captioner.threads, captioner.bundle) == (3, sessions.bundle)
    again = pickle.loads(pickle.dumps(captioner))
    assert (again.threads, again.bundle) == (3, captioner.bundle)
    assert again.caption(photos / "cat.jpg") == captioner.caption(photos / "cat.jpg")


def test_a_copy_is_itself_and_loads_no_model(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caplet.captioner.load_bundle", None)
    assert copy.copy(captioner) is captioner
    assert copy.deepcopy({"describe": captioner})["describe"] is captioner


@pytest.mark.parametrize("way", ["pickle", "tblib"])
@pytest.mark.parametrize("kind", [getattr(caplet, name) for name in caplet.__all__ if name.endswith("Error")])
def test_an_error_comes_back_as_it_was(kind: type[CapletError], way: str) -> None:
    error = kind("cat.jpg", "is a cat", "bring a dog")
    if way == "pickle":
        again = pickle.loads(pickle.dumps(error))
    else:  # which Dask and others use; it makes an empty one and fills it
        again = kind.__new__(kind)
        again.args = error.args
        again.__dict__.update(vars(error))
    assert type(again) is kind and again.args == error.args
    assert str(again) == str(error) == "cat.jpg: is a cat; bring a dog"
    if isinstance(error, OSError):
        assert (error.errno, error.strerror, error.filename) == (errno.ENOENT, "is a cat", "cat.jpg")


def test_a_caption_comes_back_read_only(captioner: Captioner, photos: Path) -> None:
    caption = captioner.caption(photos / "cat.jpg")
    for again in (pickle.loads(pickle.dumps(caption)), copy.deepcopy(caption)):
        assert again == caption and np.array_equal(again.attention, caption.attention)
        assert not again.attention.flags.writeable
