"""What can go wrong in the runtime, each error one line: what it is about, what happened, what to do.

Every error of the library is a `CapletError` and the built-in that a caller would catch anyway, so `except ValueError`
and `except FileNotFoundError` work as elsewhere in Python. All of them survive pickling, so they cross process borders.
"""

from __future__ import annotations

import errno
from typing import TypeVar

NO_MEMORY = "needs more memory than there is"
"""The cause to give where Python or a library ran out of memory."""
RUN_CHECK = "run `caplet check`"
"""The remedy to give where the graphs of a model fail, or give what cannot be; `caplet check` itself gives another."""


class CapletError(Exception):
    """Base of every error caplet raises on purpose.

    `str(error)` is always one printable line, `subject: cause; remedy`, whatever bytes the subject is made of.

    Attributes:
        subject: what the error is about: a path, `<bytes>`, an option's name.
        cause: what is wrong with it.
        remedy: what a person can do, or an empty string when there is nothing to say.
    """

    def __init__(self, subject: str, cause: str, remedy: str = "") -> None:
        super().__init__(subject, cause, remedy)
        self.subject = subject
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        told = f"{self.cause}; {self.remedy}" if self.remedy else self.cause
        return printable(f"{self.subject}: {told}")


class _NotFoundError(CapletError, FileNotFoundError):
    """Base of what is missing, with the attributes of an OSError.

    It is the first base, so that `__new__` is FileNotFoundError's: ValueError's cannot make an OSError, and tblib, with
    which Dask and others pass errors between processes, calls it.
    """

    def __init__(self, subject: str, cause: str = "no such file", remedy: str = "check the path") -> None:
        super().__init__(subject, cause, remedy)
        self.errno: int = errno.ENOENT
        self.strerror: str = cause
        self.filename: str = subject


class ArgumentError(CapletError, ValueError):
    """An option has a value that makes no sense; the subject is its name."""


class ImageError(CapletError, ValueError):
    """An image cannot be used: not a photo, damaged, truncated, too large, empty."""


class ImageTypeError(ImageError, TypeError):
    """An object that is no image source at all, such as None."""


class ImageNotFoundError(_NotFoundError, ImageError):
    """There is no file at the path given."""


class BundleError(CapletError, ValueError):
    """A model bundle cannot be used: damaged, incomplete, of another format, or its parts do not fit together."""


class BundleNotFoundError(_NotFoundError, BundleError):
    """There is no model bundle at the path given."""


class InferenceError(CapletError, RuntimeError):
    """The graphs failed while running, or could not be run."""


_Error = TypeVar("_Error", bound=BaseException)


def without_frames(error: _Error) -> _Error:
    """The error without the frames that it and its causes came through, so that keeping it keeps no photo's pixels."""
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and each.__traceback__ is not None:
            each.__traceback__ = None
            waiting += [each.__cause__, each.__context__]
    return error


def printable(text: str) -> str:
    """One line that any terminal or log can take: control characters and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
