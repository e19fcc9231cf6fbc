"""The interpreter's end waits for threads that are in onnxruntime, which would otherwise abort the process.

At its end, Python stops daemon threads (those of `Thread(daemon=True)`, `http.server`, Flask's own server) where they
next take the GIL. Before Python 3.14 it unwinds their stacks for that, and within onnxruntime's C++ this ends in
"terminate called without an active exception", a core dump and exit status 134.
"""

from __future__ import annotations

import atexit
import os
import threading

from caplet.errors import InferenceError

_PATIENCE = 5.0  # seconds; a graph may compute for longer, and then the process may crash after all
_LEFT_TO_OTHERS = 1.0  # seconds


class _Gate:
    """A context for what threads other than the main one do in C++; it lets them in until the interpreter ends.

    The main thread always gets in: it runs the end, and what `atexit` has registered may still compute.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        if _is_main_thread():
            return
        with self._changed:
            if self._closed:
                # Usually the process ends while this waits; but whatever runs at its end may wait for this thread.
                self._changed.wait_for(lambda: False, _LEFT_TO_OTHERS)
                raise InferenceError("onnxruntime", "the interpreter is shutting down", "join its threads first")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        if _is_main_thread():
            return
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in, and wait for those inside."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._inside == 0, _PATIENCE)


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


_gate = _Gate()


def computing() -> _Gate:
    """The context to call onnxruntime in. Raises InferenceError in a thread that comes when the interpreter ends."""
    return _gate


def _renew() -> None:
    global _gate
    _gate = _Gate()  # threads that are not here may be inside, or have its lock


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
atexit.register(lambda: _gate.close())
