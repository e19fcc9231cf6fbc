"""Work in threads while the caller is busy: on the next items, in order and only a few ahead, or on one other thing."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from caplet.errors import InferenceError

T = TypeVar("T")
R = TypeVar("R")


def in_order(items: Iterable[T], work: Callable[[T], R], *, workers: int, ahead: int) -> Generator[R, None, None]:
    """Yield `work(item)` for each item, in order.

    The items are drawn in the caller's thread, at most `ahead` before their results are asked for. If drawing one
    fails, the results of the items before it come first. Closing the iterator, or letting go of it, ends each thread
    when its current item is done. Where no thread can be started, the work is done here; and so it is if there is only
    one item: for some milliseconds, a thread that was just started may share a core with those that `work` wakes.

    Args:
        items: any iterable, also an endless one.
        work: called in the worker threads; what it raises is raised at the item's turn.
        workers: number of threads; with 0 the work is done here, an item at a time.
        ahead: most items that are drawn and not yet yielded, at least 2.

    Raises:
        InferenceError: in a forked child that goes on with its parent's iterator, as the threads are the parent's.
    """
    if workers == 0:
        yield from map(work, items)
        return
    source = iter(items)
    head, failure = take(source, 2)
    drained = len(head) < 2
    source = iter(head) if drained else itertools.chain(head, source)  # what no thread has been given
    pending: deque[Future[R]] = deque()
    process = os.getpid()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="caplet-photo")
    try:
        while True:
            if os.getpid() != process:
                raise InferenceError("caption_many", "was begun in the parent process", "call it in each process")
            while not drained and len(pending) < ahead:
                drawn, failure = take(source, 1)
                if not drawn:
                    drained, source = True, iter(())
                    break
                pending.append(Future())
                try:
                    executor.submit(_run, pending[-1], work, drawn[0])
                except RuntimeError:  # the system gives no more threads, as under a container's limit on processes
                    drained = True
                    if pending[-1].cancel():
                        pending.pop()
                        source = itertools.chain(drawn, source)
            if not pending:
                break
            pending[0].exception()  # waited for while it is still known to be busy
            yield pending.popleft().result()
        yield from map(work, source)
        if failure is not None:
            raise failure
    finally:
        del failure  # as in `Captioner.caption`
        # A worker may be stuck on a slow disk, and closing must not be. But workers without work are waited for: in a
        # thread of gevent's pool they are greenlets, which could not end later, and the process would wait for them.
        # In a forked child, none are looked at: a future's lock may be held by a thread that is not there.
        idle = os.getpid() == process and all(future.cancel() or future.done() for future in pending)
        with contextlib.suppress(RuntimeError):  # it cannot wait for itself, where garbage is collected in a worker
            executor.shutdown(wait=idle, cancel_futures=True)


def take(items: Iterator[T], count: int) -> tuple[list[T], Exception | None]:
    """The next items, at most `count`, and the error that cut them short, if any: what was drawn before is not lost."""
    taken: list[T] = []
    try:
        for item in itertools.islice(items, count):
            taken.append(item)
    except Exception as error:
        return taken, error
    return taken, None


def _run(future: Future[R], work: Callable[[T], R], item: T) -> None:
    """Set the future to `work(item)`, unless it was cancelled.

    The executor's own futures will not do: where it cannot start a thread it gives none, but has queued the item, which
    another of its threads may take.
    """
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work(item))
        except BaseException as error:
            future.set_exception(error)
        finally:
            del future, work, item  # an error knows this frame


@contextlib.contextmanager
def beside(work: Callable[[], R]) -> Iterator[Callable[[], R]]:
    """Do `work` in a thread of its own, beside what the block does.

    Yields a function that waits for the result of `work` and returns it, or raises what `work` raised. Where no thread
    can be started, the function does the work. Leaving the block waits for nothing.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="caplet-beside")
    future: Future[R] | None = None
    try:
        with contextlib.suppress(RuntimeError):  # no thread can be started: at a limit, or at shutdown
            future = executor.submit(work)
        yield work if future is None else future.result
    finally:
        executor.shutdown(wait=future is None or future.done())  # as in `in_order`
