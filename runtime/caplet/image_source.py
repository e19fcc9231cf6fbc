"""What a photo can be given as, and the way from each of these to a file of our own."""

from __future__ import annotations

import errno
import inspect
import io
import os
from typing import Any, BinaryIO, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL import Image, ImageFile

from caplet.errors import ImageError, ImageNotFoundError, ImageTypeError
from caplet.image_formats import HEAD, identify
from caplet.image_limits import longest_file, too_long


@runtime_checkable
class BinaryReader(Protocol):
    """The least a binary file object can be; `mmap.mmap` is one too."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        ...


ImageSource: TypeAlias = (
    str | os.PathLike[str] | os.PathLike[bytes] | bytes | bytearray | memoryview | BinaryReader | Image.Image
    | np.ndarray[Any, np.dtype[np.uint8]]
)  # fmt: skip
"""What `load_pixels` takes. Text is a path; bytes are the contents of an image file. The last is NumPy's `NDArray` in
full, as that, from NumPy 2.5 on, is an alias behind which programs that check types while they run find no class."""

_LONGEST_PATH = 4096
"""That messages show whole, in characters."""


def is_closed(source: object) -> bool:
    """Whether a file object is closed, or the file of a PIL image whose pixels have not been read."""
    if isinstance(source, ImageFile.ImageFile):
        return bool(source.tile) and (source.fp is None or is_closed(source.fp))
    return getattr(source, "closed", False) is True


def is_source(value: object) -> bool:
    """Whether `value` is of a type that `load_pixels` takes."""
    types = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return isinstance(value, types) or hasattr(value, "read")


def subject_of(source: object) -> str:
    """What to call the source in an error message."""
    if isinstance(source, (str, os.PathLike)):
        try:
            path = os.fsdecode(source)
            # A longer one is no path that Linux or macOS can open, but mostly an image in base64.
            return (path if len(path) <= _LONGEST_PATH else f"{path[:100]}...") or "<empty path>"
        except Exception as error:  # whatever the caller's own class raises
            raise ImageTypeError(f"<{type(source).__name__}>", f"gives no path ({error})", "pass a path") from error
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(source, Image.Image):
        return "<PIL image>"
    if isinstance(source, np.ndarray):
        return "<array>"
    if hasattr(source, "read"):
        return "<file object>"
    remedy = "pass a path, bytes, a binary file object, a PIL image or a uint8 array"
    if hasattr(source, "read_bytes"):  # a path in an archive, or in a store on the network
        remedy = "pass its read_bytes()"
    elif isinstance(source, (list, tuple)):
        remedy = "pass one photo, or several to caption_many"
    raise ImageTypeError(f"<{type(source).__name__}>", "not an image source", remedy)


def as_file(source: Any, subject: str, max_pixels: int) -> BinaryIO:
    """An image file as a seekable file object of our own, to be closed."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source))  # which also takes a view with gaps, and shares what it is given
    if not isinstance(source, (str, os.PathLike)):
        return read_stream(source, subject, max_pixels)
    try:
        file = open(os.fsdecode(source), "rb")  # noqa: SIM115 - the caller closes it; Path("") would be a folder
    except ValueError as error:  # a null byte, or characters that cannot be in a name here
        raise ImageNotFoundError(subject) from error
    except OSError as error:
        if error.errno != errno.EINVAL or os.path.exists(source):
            error.filename = subject  # which tracebacks show
            raise
        # So Windows says of characters that no name may have, such as those of patterns and URLs.
        raise FileNotFoundError(subject) from error
    if file.seekable():
        file.seek(0)  # macOS opens /dev/stdin where it has been read to
        return file
    with file:  # a pipe
        return read_stream(file, subject, max_pixels)


def read_stream(stream: Any, subject: str, max_pixels: int) -> io.BytesIO:
    """Everything in a file object, which is left at the position where it was.

    Pillow never sees the caller's object: some decoders close it, or move its file descriptor behind its back.
    """
    if inspect.iscoroutinefunction(stream.read):  # an upload in FastAPI, a file of aiofiles
        raise ImageTypeError(subject, "its read is asynchronous", "await it, and pass the bytes")
    position = _position(stream)
    try:
        if position is not None:
            stream.seek(0)
        return io.BytesIO(read_all(stream, subject, max_pixels))
    finally:
        if position is not None:
            stream.seek(position)


def read_all(stream: Any, subject: str, max_pixels: int) -> bytearray:
    """Everything left in a stream; reading stops as soon as it is clear that caplet cannot use the photo.

    Args:
        stream: has a `read` that takes the most bytes to return.
        subject: what to call it in an error message.
        max_pixels: most pixels that the photo may have, and so an upper limit of its length.

    Raises:
        ImageTypeError: it returns no bytes.
        ImageError: it starts like no format that caplet reads, is too long, or cannot be read.
    """
    most = longest_file(max_pixels)
    data = bytearray()
    while part := _bytes_read(stream, subject):
        data += part
        if len(data) >= HEAD:
            identify(bytes(data[:HEAD]), subject)
        if len(data) > most:
            raise too_long(subject, most)
    return data


def _bytes_read(stream: Any, subject: str) -> bytes | bytearray | memoryview:
    """The next bytes of a stream. What its `read` raises says nothing about the photo, so it is not called damaged."""
    try:
        part = stream.read(1 << 20)
    except UnicodeDecodeError:
        part = ""
    except Exception as error:
        if is_closed(stream) or isinstance(error, (MemoryError, Warning)):
            raise
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(subject, f"cannot be read ({cause})", "pass it as a file") from error
    if isinstance(part, (bytes, bytearray, memoryview)):
        return part
    if isinstance(part, str):
        raise ImageTypeError(subject, "opened as text", "open it in binary mode: open(path, 'rb')")
    if part is None:  # what a raw stream that does not block returns
        raise ImageError(subject, "has no data yet", "make it blocking, or read it yourself and pass the bytes")
    raise ImageTypeError(subject, f"its read() returns a {type(part).__name__}, not bytes", "pass its bytes")


def _position(stream: Any) -> int | None:
    """The position of a file object that can be put back to it; None for any other."""
    seekable = getattr(stream, "seekable", None)
    try:
        if seekable is not None:
            return int(stream.tell()) if seekable() else None
        # SpooledTemporaryFile before Python 3.11, and other objects that have the methods but not this one.
        return int(stream.seek(stream.tell()) or stream.tell())
    except (AttributeError, OSError, ValueError):
        return None
