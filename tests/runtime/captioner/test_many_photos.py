"""`Captioner.caption_many`: captions in order, drawn a few ahead, by threads that end with it."""

from __future__ import annotations

import io
import itertools
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from caplet import ArgumentError, CapletError, Caption, Captioner, ImageError, ImageNotFoundError
from caplet.decode import search
from caplet.prefetch import beside, in_order

LONG = os.environ.get("CAPLET_LONG") == "1"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 8])
def test_many_photos_give_their_captions_in_order(
    batch_size: int, threads: int, tiny_bundle: Path, paths: list[Path], texts: list[str]
) -> None:
    captioner = Captioner(tiny_bundle, threads=threads)
    found = captioner.caption_many(paths * 3, batch_size=batch_size)
    assert [caption.text for caption in found] == texts * 3


def test_no_photos_give_no_captions(captioner: Captioner) -> None:
    assert list(captioner.caption_many([])) == []


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": "8"}, {"batch_size": 10**5000}, {"on_error": "ignore"}]
)
def test_options_of_a_batch_that_make_no_sense(options: Any, captioner: Captioner) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        captioner.caption_many([], **options)


@pytest.mark.parametrize(
    "images",
    [
        3,
        None,
        "cat.jpg",
        Path("cat.jpg"),
        b"photo",
        io.BytesIO(b"photo"),
        Image.new("RGB", (4, 4)),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4), np.uint8),
    ],
    ids=lambda images: type(images).__name__,
)
def test_one_photo_is_not_several(images: Any, captioner: Captioner) -> None:
    with pytest.raises(ArgumentError, match=r"images: a \w+ is not several photos; give a list of them"):
        captioner.caption_many(images)  # text would come apart into letters, a file into lines, an array into rows


def test_a_stack_of_arrays_and_an_array_of_paths_are_several(captioner: Captioner, paths: list[Path]) -> None:
    stack = np.stack([np.asarray(Image.open(path).resize((99, 99))) for path in paths])
    found = [caption.text for caption in captioner.caption_many(stack)]
    assert found == [captioner.caption(picture).text for picture in stack]
    assert len(list(captioner.caption_many(np.array(list(map(str, paths)))))) == len(paths)


def test_a_folder_with_broken_photos(captioner: Captioner, paths: list[Path], texts: list[str]) -> None:
    total, broken = (2000, 50) if LONG else (200, 5)
    contents = [path.read_bytes() for path in paths]
    step = total // broken
    sources = [contents[i % 4][:200] if i % step == 7 else contents[i % 4] for i in range(total)]
    results = list(captioner.caption_many(sources, on_error="return"))
    assert [isinstance(result, CapletError) for result in results] == [i % step == 7 for i in range(total)]
    for i, result in enumerate(results):
        assert isinstance(result, CapletError) or result.text == texts[i % 4]


def test_milliseconds_are_those_of_the_photo_and_a_share_of_the_search(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of its own: a photo is decoded in as many seconds as it says, encoded in 2; a search takes 8."""
    now = 0.0

    def taking(seconds: float, work: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            nonlocal now
            now += seconds
            return work(*arguments)

        return timed

    def load(source: Any, *, size: tuple[int, int], **_: Any) -> Any:
        if source == "bad":
            raise ImageError(source, "cannot be read")
        return taking(float(np.asarray(source).item()), np.zeros)((*size[::-1], 3), np.uint8)

    captioner = Captioner(tiny_bundle, threads=1)
    monkeypatch.setattr("caplet.captioner.time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr("caplet.captioner.load_pixels", load)
    monkeypatch.setattr("caplet.captioner.search", taking(8, search))
    monkeypatch.setattr(captioner.sessions, "encode", taking(2, captioner.sessions.encode))
    assert captioner.caption("1").milliseconds == 11_000
    photos = ["1", np.full((1, 1), 3, np.uint8), "bad", "5", "7"]  # an array is decoded before its turn
    found = captioner.caption_many(photos, on_error="return")
    assert [each.milliseconds for each in found if isinstance(each, Caption)] == [5_000, 7_000, 9_000, 11_000]


# What is drawn from the iterable.


@pytest.mark.parametrize("threads", [1, 2])
def test_many_photos_are_drawn_lazily_and_only_a_few_ahead(threads: int, tiny_bundle: Path, photos: Path) -> None:
    drawn = 0

    def endless() -> Iterator[Path]:
        nonlocal drawn
        while True:
            drawn += 1
            yield photos / "cat.jpg"

    found = Captioner(tiny_bundle, threads=threads).caption_many(endless(), batch_size=4)
    assert drawn == 0
    for captions in range(1, 30):
        next(found)
        assert drawn <= captions + 3 + 4 + threads  # the rest of this batch, the next one, and one per worker
    found.close()


@pytest.mark.parametrize(
    ("threads", "batch_size", "expected"),
    [(1, 1, 1), (1, 8, 8), (1, 20, 8), (2, 1, 3), (2, 8, 17), (2, 20, 29), (6, 1, 5), (6, 8, 19)],
)
def test_as_many_photos_are_drawn_for_the_first_caption_as_the_documentation_says(
    threads: int, batch_size: int, expected: int, tiny_bundle: Path, photos: Path
) -> None:
    numbers = itertools.count(1)
    drawn = zip(numbers, itertools.repeat(photos / "cat.jpg"))
    found = Captioner(tiny_bundle, threads=threads).caption_many((path for _, path in drawn), batch_size=batch_size)
    next(found)
    assert next(numbers) - 1 == expected
    found.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["array", "buffer", "file", "picture"])
def test_what_is_drawn_may_be_used_again_or_closed(
    kind: str, threads: int, tiny_bundle: Path, paths: list[Path], texts: list[str]
) -> None:
    def drawn() -> Iterator[Any]:
        frame = np.zeros((300, 300, 3), np.uint8)
        for path in paths * 3:
            if kind == "array":
                frame[:] = np.asarray(Image.open(path).resize((300, 300)))
                yield frame
            elif kind == "buffer":
                content = bytearray(path.read_bytes())
                yield content
                content[:] = b"x" * len(content)
            elif kind == "file":
                with path.open("rb") as file:
                    yield file
            else:
                with Image.open(path) as picture:
                    yield picture
        frame[:] = 0

    captioner = Captioner(tiny_bundle, threads=threads)
    if kind == "array":
        texts = [str(captioner.caption(np.asarray(Image.open(path).resize((300, 300))))) for path in paths]
    assert [str(caption) for caption in captioner.caption_many(drawn())] == texts * 3


# The threads that work ahead.


@pytest.mark.parametrize("started", [0, 1])
def test_where_no_thread_can_be_started_the_caller_does_the_work(
    started: int, captioner: Captioner, paths: list[Path], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    left = iter(range(started))

    def refuse(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    found = captioner.caption_many([*paths, "nowhere.jpg", *paths], batch_size=3, on_error="return")
    assert [str(result) for result in found if not isinstance(result, CapletError)] == texts * 2


def test_where_threads_run_short_no_work_is_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool has queued an item when it finds that it cannot start a thread for it, and its other threads take it."""
    start, done, refused = threading.Thread.start, [], threading.Event()

    def start_the_first(thread: threading.Thread) -> None:
        if any(other.name.startswith("caplet-photo") for other in threading.enumerate()):
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    def work(item: int) -> int:
        assert refused.wait(60)  # busy until then, so that a second thread is asked for
        done.append(item)
        return item

    monkeypatch.setattr(threading.Thread, "start", start_the_first)
    assert list(in_order(range(9), work, workers=2, ahead=3)) == [*range(9)]
    assert sorted(done) == [*range(9)]


@pytest.mark.parametrize("fails", [False, True])
def test_one_item_alone_needs_no_thread(fails: bool) -> None:
    """Not even if the next one cannot be drawn, which is told after its result."""

    def items() -> Iterator[int]:
        yield 7
        if fails:
            raise OSError("no more")

    results = in_order(items(), lambda item: (item, threading.current_thread()), workers=2, ahead=3)
    assert next(results) == (7, threading.current_thread())
    with pytest.raises(OSError if fails else StopIteration):
        next(results)


@pytest.mark.parametrize("threads_are_left", [True, False])
def test_something_is_done_beside_something_else(threads_are_left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> threading.Thread:
        begun.set()
        assert go_on.wait(10)
        return threading.current_thread()

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    if not threads_are_left:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    with beside(work) as result:
        assert begun.wait(10 if threads_are_left else 0) == threads_are_left
    go_on.set()  # only now: the end of the block waits for nothing
    assert (result() is not threading.current_thread()) == threads_are_left


def test_what_fails_beside_something_else_is_raised_where_it_is_asked_for() -> None:
    with beside(lambda: 1 // 0) as result:
        pass
    with pytest.raises(ZeroDivisionError):
        result()


def photo_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("caplet-photo")}


@pytest.mark.parametrize("how", ["close", "let go", "exhaust", "fail"])
def test_threads_end_with_the_iterator(how: str, captioner: Captioner, paths: list[Path]) -> None:
    source: Any = itertools.cycle(paths) if how in ("close", "let go") else [*paths, "x"] if how == "fail" else paths
    others = photo_threads()  # of an iterator that an earlier test still holds
    found = captioner.caption_many(source, batch_size=2)
    next(found)
    assert photo_threads() - others
    if how == "close":
        found.close()
    elif how == "fail":
        with pytest.raises(ImageNotFoundError):
            list(found)
    elif how == "exhaust":
        list(found)
    del found
    deadline = time.monotonic() + 10
    while photo_threads() - others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not photo_threads() - others


def test_threads_without_work_are_waited_for() -> None:
    """In a thread of gevent's pool they are greenlets, which could not end later."""

    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("caplet-")}

    others = threads()
    for _ in range(20):
        assert list(in_order(range(6), abs, workers=3, ahead=4)) == list(range(6))
        with beside(lambda: 1) as result:
            result()
        assert threads() <= others


@pytest.mark.parametrize("busy", [False, True])
def test_closing_waits_for_threads_without_work(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []

    class Executor:
        """Does the first item at once, begins the second if it is busy, and leaves the others waiting."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def submit(self, run: Any, future: Any, work: Any, item: int) -> None:
            if item == 0:
                run(future, work, item)
            elif item == 1 and busy:
                future.set_running_or_notify_cancel()

        def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
            waited.append(wait)
            if wait:
                raise RuntimeError("cannot join current thread")  # as if this were garbage, found in a worker

    monkeypatch.setattr("caplet.prefetch.ThreadPoolExecutor", Executor)
    results = in_order(itertools.count(), abs, workers=2, ahead=6)
    assert next(results) == 0
    results.close()
    assert waited == [not busy]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_an_interrupt_waits_for_no_work() -> None:
    """Whatever the signal's handler raises, while the first result is waited for and its worker is busy."""
    release = threading.Event()
    results = in_order(range(2), lambda _: release.wait(30), workers=1, ahead=2)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before, started = signal.signal(signal.SIGALRM, interrupt), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(results)
    finally:
        signal.signal(signal.SIGALRM, before)
        release.set()
    assert time.monotonic() - started < 20


def test_closing_waits_for_no_work_and_begins_none() -> None:
    begun: queue.SimpleQueue[int] = queue.SimpleQueue()
    closed = threading.Event()

    def work(item: int) -> None:
        begun.put(item)
        if item > 0:
            closed.wait(10)

    others, items = photo_threads(), itertools.count()
    results = in_order(items, work, workers=2, ahead=6)
    next(results)
    assert next(items) == 6  # six were drawn: 0 to 5
    assert {begun.get() for _ in range(3)} == {0, 1, 2}
    threads = photo_threads() - others
    assert len(threads) == 2
    results.close()
    assert photo_threads() >= threads  # still busy with their items
    closed.set()
    for thread in threads:
        thread.join(10)
    assert begun.empty()


def test_photos_are_decoded_and_encoded_while_sentences_are_searched(
    captioner: Captioner, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[tuple[str, int]] = []
    encode = captioner.sessions.encode

    def watched(pixels: Any) -> Any:
        encoded.append((threading.current_thread().name, len(pixels)))
        return encode(pixels)

    monkeypatch.setattr(captioner.sessions, "encode", watched)
    found = captioner.caption_many(paths * 4, batch_size=2)
    next(found)
    deadline = time.monotonic() + 10
    while len(encoded) < 4 and time.monotonic() < deadline:  # the next batch is encoded before anybody asks
        time.sleep(0.01)
    assert len(encoded) >= 4
    # Each by itself, so that neither the result of encoding a photo nor its memory depends on the batch.
    assert all(name.startswith("caplet-photo") and photos == 1 for name, photos in encoded)
    found.close()


def test_photos_are_encoded_side_by_side(
    tiny_bundle: Path, paths: list[Path], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = Captioner(tiny_bundle, threads=2)
    both = threading.Barrier(2, timeout=10)
    encode = captioner.sessions.encode

    def watched(pixels: Any) -> Any:
        both.wait()  # breaks, which is an error, unless two photos get here at the same time
        return encode(pixels)

    monkeypatch.setattr(captioner.sessions, "encode", watched)
    assert [str(caption) for caption in captioner.caption_many(paths, batch_size=4)] == texts


# Memory.


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.no_cover  # which would take four times as long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat(captioner: Captioner, photos: Path) -> None:
    content = (photos / "cat.jpg").read_bytes()
    for _ in captioner.caption_many(itertools.repeat(content, 200)):
        pass
    before = resident_bytes()
    for _ in captioner.caption_many(itertools.repeat(content, 20_000 if LONG else 1_000)):
        pass
    assert resident_bytes() - before < 10 * 2**20
