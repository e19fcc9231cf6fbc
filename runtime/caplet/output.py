"""Results go to standard output or a file, unbuffered, so that what was reported as written is written.

Complaints go to standard error, which may be closed without costing any photo its caption.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from caplet.errors import CapletError, printable

INTERRUPTED = 130
"""Exit status of a command that was ended by Ctrl-C: 128 and the number of SIGINT, as shells have it."""

_PATIENCE = 2.0
"""Seconds for which a file that cannot be renamed is tried again, see `put_in_place`."""


class Output:
    """A context for writing whole lines to a file, closed at its end, or to standard output, which stays open."""

    def __init__(self, path: str | None = None) -> None:
        """Open `path` to append to it, and lock it against other runs; None stands for standard output.

        Raises:
            CapletError: another run is writing to the file.
            OSError: it cannot be opened.
        """
        self._name = path or "<standard output>"
        self._is_file = self._is_pipe = False
        self._file: io.FileIO | _Lines
        if path is not None:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by `__exit__`
            self._is_file = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
            if self._is_file and not _lock(self._file.fileno()):
                self._file.close()
                raise CapletError(path, "another caplet is writing to it", "wait for it to end, or give another file")
        elif sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._name)
        else:
            sys.stdout.flush()
            make_blocking(sys.stdout)
            try:
                # Not FileIO by itself: `open` knows a console of Windows, which takes other bytes than a file.
                self._file = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115
                self._is_pipe = stat.S_ISFIFO(os.fstat(self._file.fileno()).st_mode)
            except io.UnsupportedOperation:  # no file: `contextlib.redirect_stdout`, IDLE, pytest's `capsys`
                self._file = _Lines(sys.stdout)

    @property
    def is_terminal(self) -> bool:
        """Whether what is written appears on a terminal, be it by way of `/dev/stdout` or `/dev/tty`."""
        return self._file.isatty()

    def clear(self) -> None:
        """Remove what the file held before; standard output, pipes and devices stay as they are. Raises OSError."""
        if self._is_file:
            self._file.truncate(0)

    def write(self, line: str) -> None:
        """Write a line, in UTF-8; file names that are not UTF-8 get their own bytes back. Raises OSError."""
        try:
            left = memoryview(line.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:  # half of a surrogate pair, which a file's name on Windows can hold
            left = memoryview(line.encode("utf-8", "surrogatepass"))
        while left:
            try:
                left = left[self._file.write(left) :]
            except OSError as error:
                if self._is_pipe and error.errno == errno.EINVAL:  # as Windows tells that its reader has left
                    raise BrokenPipeError from error
                error.filename = self._name
                raise

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Lines(io.RawIOBase):
    """A text stream as a file that takes whole lines in UTF-8; bytes of names that are not UTF-8 are escaped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, line: Any, /) -> int:
        self._stream.write(bytes(line).decode("utf-8", "backslashreplace"))
        return len(line)


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write that appears at `target` whole or not at all, in place of one that is there. Raises OSError."""
    # A name nobody can foresee, opened only if it is new: otherwise a link of that name would be followed.
    temporary = target.with_name(f".caplet-{os.urandom(8).hex()}")
    file = temporary.open("xb")
    try:
        with file:
            yield file
        put_in_place(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_in_place(source: Path, target: Path) -> None:
    """`os.replace`. On Windows it is tried for two seconds: a virus scanner, or a program that copies files to a cloud,
    has new ones open for a moment, and Windows lets nobody rename them then. Raises OSError.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() >= end:
                raise
        time.sleep(_PATIENCE / 40)


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed; False if another process has locked it. Not every file system can lock."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # Nobody else can read a locked byte, so it is one that results hardly reach.
            os.lseek(descriptor, 2**31 - 2, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        pass
    return True


def make_blocking(stream: IO[Any]) -> None:
    """Make a standard stream blocking, in case whoever started the command (Node, ssh) left it non-blocking."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not a real file; Windows before Python 3.12
        os.set_blocking(stream.fileno(), True)  # type: ignore[attr-defined, unused-ignore]


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide what C libraries print on standard error, such as libtiff about damaged files; Python can still write there.

    For the command only: it changes what file descriptor 2 is for the whole process.
    """
    before = sys.stderr
    if before is None:  # then 2 may be any file that was opened since
        yield
        return
    kept = os.dup(2)
    if isinstance(before, io.TextIOWrapper) and before is sys.__stderr__:
        sys.stderr = open(  # noqa: SIM115 - `kept` is closed below
            kept, "w", buffering=1, encoding=before.encoding, errors=before.errors, closefd=False
        )
    with contextlib.suppress(OSError):  # a bare chroot has no such device: nothing is hidden, and no file made
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)
    try:
        yield
    finally:
        sys.stderr = before
        os.dup2(kept, 2)
        os.close(kept)


def heed_sigterm() -> None:
    """As a container's first process, end on SIGTERM as other processes do, with the status that shells tell.

    The kernel spares process 1 signals that it does not handle: `docker stop` would wait ten seconds, then kill it.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def end_process(status: int, *, at_once: bool = False) -> NoReturn:
    """End this process; at once if something went wrong, or if asked to.

    The usual end would wait for worker threads, which may be busy with a large photo or a disk that does not answer,
    show a traceback if Ctrl-C comes meanwhile, or crash when the interpreter is taken down around them (JAX). And it
    takes the model apart, which takes a tenth as long as all before it.
    """
    if status or at_once:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)
    sys.exit()


def is_watched() -> bool:
    """Whether a debugger, profiler or coverage is at work, which would lose its results by an end at once."""
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    return bool(sys.gettrace() or sys.getprofile() or (monitoring and any(map(monitoring.get_tool, range(6)))))


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: where it interrupts a C module's import, it arrives as an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def tell(text: str) -> None:
    """Write text on standard output. Raises OSError."""
    with Output() as output:
        output.write(text)


def complain(message: str) -> None:
    """Write one line on standard error, if it is open."""
    if sys.stderr is not None:  # with None, print would take standard output
        with contextlib.suppress(OSError):
            print(f"caplet: {printable(message)}", file=sys.stderr, flush=True)
