"""The end of the interpreter waits for the threads that compute, as they would crash the process.

At its end Python stops daemon threads (those of `Thread(daemon=True)`, `http.server`, Flask's own server) where they
next take its lock. Before Python 3.14 it unwinds their stack for that, and in onnxruntime's C++ that means "terminate
called without an active exception", a core dump and exit status 134.
"""

from __future__ import annotations

import atexit
import os
import threading

from caplet.errors import InferenceError

_PATIENCE = 5.0  # seconds; a graph may compute for longer, and then the process may crash after all
_LEFT_TO_OTHERS = 1.0  # seconds


class _Gate:
    """Open until the interpreter ends; a context for what other threads than the main one do in C++.

    Only they are counted: the main thread runs the end, and what is registered to be done there may still compute.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        if _is_main_thread():
            return
        with self._changed:
            # Usually the process is gone before. But something else at its end may wait for this very thread.
            if self._closed and not self._changed.wait_for(lambda: False, _LEFT_TO_OTHERS):
                raise InferenceError("onnxruntime", "the interpreter is shutting down", "end its threads before")
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
