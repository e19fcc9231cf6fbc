"""The interpreter ends in peace whatever daemon threads are at."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from caplet import Captioner, InferenceError, shutdown

IN_DAEMON_THREADS = """
import sys, threading, time
from caplet import Captioner
model, photo, what = sys.argv[1:]
captioner = Captioner(model, threads=1)
work = {"caption": lambda: captioner.caption(photo), "load": lambda: Captioner(model, threads=1)}[what]
def forever():
    while True:
        work()
for _ in range(4):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.3)
print("end")
"""

JOINED_AT_THE_END = """
import atexit, sys, threading
stop, errors = threading.Event(), []
def work():
    while not stop.is_set():
        try:
            captioner.caption(photo)
        except Exception as error:
            errors.append(str(error))
def end():
    captioner.caption(photo)
    stop.wait(0.5)
    stop.set()
    worker.join()
    print(set(errors))
worker = threading.Thread(target=work, daemon=True)
atexit.register(end)  # before caplet's, so it comes after
from caplet import Captioner
model, photo = sys.argv[1:]
captioner = Captioner(model, threads=1)
worker.start()
"""


def output_of(code: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("what", ["caption", "load"])
def test_daemon_threads_may_be_at_work_when_the_interpreter_ends(what: str, tiny_bundle: Path, photos: Path) -> None:
    for _ in range(3):
        assert output_of(IN_DAEMON_THREADS, tiny_bundle, photos / "cat.jpg", what) == "end\n"


def test_who_waits_for_a_daemon_thread_at_the_end_waits_not_for_ever(tiny_bundle: Path, photos: Path) -> None:
    error = "onnxruntime: the interpreter is shutting down; join its threads first"
    assert output_of(JOINED_AT_THE_END, tiny_bundle, photos / "cat.jpg") == f"{{{error!r}}}\n"


def test_the_end_waits_for_those_inside_and_lets_nobody_else_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "_LEFT_TO_OTHERS", 0.01)
    gate, inside, leave = shutdown._Gate(), threading.Event(), threading.Event()
    log: list[str] = []

    def compute() -> None:
        with gate:
            inside.set()
            leave.wait(60)
            log.append("computed")

    def compute_late() -> None:
        with pytest.raises(InferenceError, match="shutting down"), gate:
            log.append("computed too late")

    first = threading.Thread(target=compute)
    first.start()
    assert inside.wait(60)
    threading.Timer(0.1, leave.set).start()
    gate.close()
    log.append("closed")
    second = threading.Thread(target=compute_late)
    second.start()
    first.join()
    second.join()
    with gate:
        log.append("the main thread computes")
    assert log == ["computed", "closed", "the main thread computes"]


def test_the_end_does_not_wait_for_a_graph_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "_PATIENCE", 0.05)
    gate, inside, leave = shutdown._Gate(), threading.Event(), threading.Event()

    def compute() -> None:
        with gate:
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=compute)
    thread.start()
    assert inside.wait(60)
    gate.close()
    assert thread.is_alive()
    leave.set()
    thread.join()


def test_a_forked_child_has_a_gate_of_its_own(tiny_bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "_gate", gate := shutdown._Gate())
    gate._inside = 1  # of a thread that does not exist in the child
    shutdown._renew()  # what happens at the fork
    assert shutdown.computing() is not gate
    shutdown.computing().close()
    assert Captioner(tiny_bundle, threads=1).caption(photos / "cat.jpg").words  # this is the main thread
