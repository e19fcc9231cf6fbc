"""From anything a person has (path, bytes, file object, PIL image, array) to uint8 RGB pixels, through one decoder.

Every source becomes a Pillow image, and every Pillow image takes the same steps: RGB, with alpha over white;
orientation as its EXIF says; squashed to the size the encoder wants; sRGB.

Nothing here sets or depends on Pillow's process-wide switches (`Image.MAX_IMAGE_PIXELS`,
`ImageFile.LOAD_TRUNCATED_IMAGES`): limits and leniency belong to the call, so calls in several threads, and the
caller's own use of Pillow, do not disturb each other. Some of its decoders look at MAX_IMAGE_PIXELS all the same: a
GIF's frame that is to be cleared, and in newer Pillows a TIFF, with more pixels causes a warning; one with more than
twice as many is refused, and so is a WebP by Pillow 13. Pillow's warnings, of odd EXIF for instance, are not filtered:
filters are process-wide too, and `warnings.catch_warnings` would undo what other threads do.
"""

from __future__ import annotations

import errno
import functools
import inspect
import io
import os
import struct
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from caplet.arguments import whole_number
from caplet.errors import ArgumentError, CapletError, ImageError, ImageNotFoundError, ImageTypeError
from caplet.image_file import (
    BITS_PER_SAMPLE,
    HEAD,
    IN_PYTHON,
    LONGEST_EXIF,
    MAY_BE_TRUNCATED,
    PHOTOMETRIC,
    Box,
    check_size,
    correct_samples,
    decode_file,
    decoder_of,
    identify,
    longest_file,
    refused,
    too_long,
)

if TYPE_CHECKING:
    from PIL import ImageCms


@runtime_checkable
class BinaryReader(Protocol):
    """The least a binary file object can be; `mmap.mmap` is one too."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        ...


ImageSource: TypeAlias = (
    str | os.PathLike[str] | os.PathLike[bytes] | bytes | bytearray | memoryview | BinaryReader | Image.Image
    | NDArray[np.uint8]
)  # fmt: skip
"""What `load_pixels` takes. Text is a path; bytes are the contents of an image file."""

MAX_PIXELS = 120_000_000
"""Default limit on width x height. A 108-megapixel phone photo passes: as a usual JPEG it takes 10 MB of memory, as a
progressive one 320 MB; WebP and float TIFF take up to 17 bytes a pixel, and the costliest, JPEG 2000, up to 30."""

LARGEST_LIMIT = 2**40
"""Most that a limit on pixels can be set to."""

_LONGEST_PATH = 4096
"""That messages show whole, in characters."""

_LONGEST_SIDE = 2**16
"""Of the result, in pixels."""

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: white, as on paper and on most pages where such pictures stand."""


def load_pixels(
    source: ImageSource,
    *,
    size: tuple[int, int] = (299, 299),
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
) -> NDArray[np.uint8]:
    """Decode an image and squash it to a fixed size.

    EXIF orientation is applied, transparency is composited over white, animations give their first frame (a PIL image
    gives the frame it stands at), colour profiles (and gammas of PNGs) other than sRGB are converted to sRGB, 16-bit
    and float samples are brought to 8 bits. Small photos get exactly the pixels of Pillow's
    `convert("RGB").resize(size, BILINEAR)`; a JPEG of which both sides are at least four times the longer one of `size`
    is decoded at 1/2, 1/4 or 1/8 of its size, never below twice that, which is several times faster and differs by less
    than one level on average. Of a HEIC file (not of a PIL image of one) with a thumbnail that is no shorter than the
    longer side of `size` either way, the thumbnail is decoded: at least ten times as fast, and some three levels apart.

    Args:
        source: path, file contents as bytes, bytearray or memoryview, binary file object, PIL image, or uint8 array
            [height, width, 3] RGB, [height, width, 4] RGBA, [height, width] or [height, width, 1] grey. A seekable file
            object is read from its start, whatever its position, and put back to that. A PIL image may get loaded.
        size: width and height of the result, in pixels, 1 to 65,536 each.
        max_pixels: most pixels (width x height) the source may have; checked before anything is decoded.
        allow_truncated: accept a JPEG, PNG, GIF, TIFF, BMP or PPM that breaks off in the middle, and use what is there.

    Returns:
        uint8 [height, width, 3], RGB, C-contiguous, owned by the caller.

    Raises:
        ImageNotFoundError: there is no file at that path.
        ImageTypeError: the source is none of the types above.
        ImageError: the image is unreadable, damaged, truncated, empty, too large, or in a format caplet does not read.
        ArgumentError: `size` or `max_pixels` makes no sense.
    """
    size = _checked_size(size)
    return _load(source, lambda width, height: size, max(size), max_pixels, allow_truncated)


def load_picture(
    source: ImageSource, *, longest_side: int, max_pixels: int = MAX_PIXELS, allow_truncated: bool = False
) -> NDArray[np.uint8]:
    """Decode an image for people to look at: like `load_pixels`, but in its proportions, with the longest side given.

    A side is at least about an eighth of the other, so that even a strip of pixels can be seen.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageNotFoundError, ImageTypeError, ImageError, ArgumentError: as `load_pixels`.
    """
    longest_side = whole_number("longest_side", longest_side, _LONGEST_SIDE)

    def fit(width: float, height: float) -> tuple[int, int]:
        scale, least = longest_side / max(width, height), max(longest_side // 8, 1)
        return max(round(width * scale), least), max(round(height * scale), least)

    return _load(source, fit, longest_side, max_pixels, allow_truncated)


_Fit: TypeAlias = Callable[[float, float], tuple[int, int]]
"""Width and height of the result from those of the upright picture."""


def _load(
    source: ImageSource, fit: _Fit, longest_side: int, max_pixels: int, allow_truncated: bool
) -> NDArray[np.uint8]:
    """Pixels of any source; no side of the result is longer than `longest_side`."""
    max_pixels = whole_number("max_pixels", max_pixels, LARGEST_LIMIT)
    subject = _subject(source)
    try:
        if isinstance(source, np.ndarray):
            _check_array(source, max_pixels)
            samples = source[:, :, 0] if source.shape[2:] == (1,) else source
            return _finish(Image.fromarray(np.ascontiguousarray(samples)), fit)
        if isinstance(source, Image.Image):
            check_size(source.size, max_pixels, subject)
            file = _file_or_decode(source, subject, max_pixels, allow_truncated)
            if file is None:
                return _finish(source, fit)
            like = None if source.format == "TIFF" else source  # Pillow turns a TIFF while decoding
        else:
            file, like = _as_file(source, subject, max_pixels), None
        with file:
            # Twice the longest side both ways, as the orientation, known only later, may swap them.
            image, box = decode_file(
                file, subject, least_side=2 * longest_side, max_pixels=max_pixels, allow_truncated=allow_truncated
            )
            return _finish(image, fit, like=like, box=box)
    except CapletError:
        raise
    except FileNotFoundError as error:
        remedy = "caplet reads no URLs: download it first" if "://" in subject else "check the path"
        raise ImageNotFoundError(subject, remedy=remedy) from error
    except Warning as warning:
        cause = f"Pillow warns of it ({warning}), and warnings are errors in this process"
        raise ImageError(subject, cause, "warnings.filterwarnings('ignore', module='PIL')") from warning
    # Damaged bytes make Pillow raise almost anything: OSError, SyntaxError, ValueError, struct.error, zlib.error,
    # KeyError, IndexError, OverflowError, MemoryError, RecursionError and more, which also differs between versions.
    except Exception as error:
        if _is_closed(source) or "closed image" in str(error):  # Pillow's, where pixels had been read before
            raise ImageError(subject, "was closed", "pass it before you close it") from error
        raise refused(error, subject) from error


def _is_closed(source: object) -> bool:
    """Whether a file object is closed, or the file of a PIL image whose pixels have not been read."""
    if isinstance(source, ImageFile.ImageFile):
        return bool(source.tile) and (source.fp is None or _is_closed(source.fp))
    return getattr(source, "closed", False) is True


def is_source(value: object) -> bool:
    """Whether `value` is of a type that `load_pixels` takes."""
    types = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return isinstance(value, types) or hasattr(value, "read")


def _subject(source: object) -> str:
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
    raise ImageTypeError(f"<{type(source).__name__}>", "not an image source", remedy)


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    try:
        width, height = size
    except (TypeError, ValueError):
        raise ArgumentError("size", f"is {size!r}", "it must be (width, height)") from None
    return whole_number("width", width, _LONGEST_SIDE), whole_number("height", height, _LONGEST_SIDE)


def _check_array(array: NDArray[Any], max_pixels: int) -> None:
    if array.dtype != np.uint8:
        raise ImageError("<array>", f"its dtype is {array.dtype}", "pass uint8 samples, 0 to 255")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        remedy = "pass [height, width], [height, width, 3] or [height, width, 4]"
        if array.ndim == 1:
            remedy = "pass its tobytes(), if it holds an image file"
        raise ImageError("<array>", f"its shape is {array.shape}", remedy)
    check_size((array.shape[1], array.shape[0]), max_pixels, "<array>")


def _as_file(source: Any, subject: str, max_pixels: int) -> BinaryIO:
    """An image file as a seekable file object of our own, to be closed."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source))  # which also takes a view with gaps, and shares what it is given
    if not isinstance(source, (str, os.PathLike)):
        return _read_stream(source, subject, max_pixels)
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
        return _read_stream(file, subject, max_pixels)


def _read_stream(stream: Any, subject: str, max_pixels: int) -> io.BytesIO:
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
        if _is_closed(stream) or isinstance(error, (MemoryError, Warning)):
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


_decoding = threading.Lock()
"""Held while Pillow reads a file into an image that is not ours: several threads may have been given the same one."""


def _renew_lock() -> None:
    global _decoding
    _decoding = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)  # another thread may have held it at the fork


def _file_or_decode(image: Image.Image, subject: str, max_pixels: int, allow_truncated: bool) -> BinaryIO | None:
    """Decode the image in place and return None; or, for a JPEG, a GIF, a BMP or a TIFF on its side that is opened but
    not decoded yet, return its file, read into memory.

    Decoded as a file, it gives the pixels that the path would give, even where a large photo is decoded at a part of
    its size, and the caller's image stays undecoded. (A TIFF on its side that was opened by its path would be decoded
    as if it had the width of the upright picture.) An image that the caller has drafted, or that stands at another
    frame than the first, is not the picture that its file gives, so it is decoded in place. With `allow_truncated`,
    this way is taken by every format that can be used truncated: Pillow's own leniency is a switch of the process. The
    variants in `IN_PYTHON`, which caplet does not read from files, are always decoded in place.
    """
    with _decoding:
        by_file = (
            image.format in ("JPEG", "MPO", "GIF", "BMP")
            or (allow_truncated and image.format in MAY_BE_TRUNCATED)
            or (image.format == "TIFF" and _orientation(image) in _ON_ITS_SIDE)
        )
        if (
            by_file
            and isinstance(image, ImageFile.ImageFile)
            and decoder_of(image) not in IN_PYTHON
            and _is_as_opened(image)
        ):
            file = _read_stream(image.fp, subject, max_pixels)
        else:
            if image.format == "TIFF" and isinstance(image, ImageFile.ImageFile):
                correct_samples(image)
            image.load()
            file = None
        _orientation(image)  # parsed here once, which threads may not do side by side either
        return file


def _is_as_opened(image: ImageFile.ImageFile) -> bool:
    return bool(image.tile) and image.fp is not None and not image.decoderconfig and image.tell() == 0


def _finish(
    image: Image.Image, fit: _Fit, like: Image.Image | None = None, box: Box | None = None
) -> NDArray[np.uint8]:
    """The steps every image takes once its samples are in memory.

    Args:
        image: the samples.
        fit: the size of the result.
        like: the image whose orientation and colour profile hold; `image` itself if None.
        box: the part of `image` that the picture fills, as `decode_file` gives it; all of it if None.
    """
    described = image if like is None else like
    profile = _profile(described)
    # Inks that have a profile are squashed as they are: what RGB they give is left to it.
    colours = image if image.mode == "CMYK" and profile is not None else _to_rgb_or_grey(image)
    orientation = _orientation(described)
    if box is not None:  # squashed before it is turned, as the box does not turn with it
        _, _, width, height = box
        size = fit(height, width)[::-1] if orientation in _ON_ITS_SIDE else fit(width, height)
        colours = colours.resize(size, Image.Resampling.BILINEAR, box)
    if orientation in _TRANSPOSITIONS:
        colours = colours.transpose(_TRANSPOSITIONS[orientation])
    if box is None:
        colours = _squash(colours, fit(*colours.size))
    colours = _to_srgb(colours, profile, described)
    if colours.mode != "RGB":  # only now: small and upright it takes less time and memory, and gives the same
        colours = colours.convert("RGB")
    return np.array(colours, dtype=np.uint8)


_ORIENTATION = 0x0112
"""The tag of EXIF (CIPA DC-008)."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what puts the picture upright; 1 is upright."""

_ON_ITS_SIDE = range(5, 9)
"""Orientations that swap width and height."""


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation. From long EXIF nothing else is read: all its values may share the same bytes, which Pillow
    before 13 copies for each, so that a megabyte becomes gigabytes.
    """
    exif = image.info.get("exif") or b""
    in_text = image.info.get("Raw profile type exif") or ""  # of old PNGs, in hexadecimal digits
    try:
        if len(exif) > LONGEST_EXIF or len(in_text) > 3 * LONGEST_EXIF:
            return _orientation_in(exif)
        return int(image.getexif().get(_ORIENTATION, 1))
    except Warning:
        raise
    except Exception:  # damaged EXIF spoils no picture
        return 1


def _orientation_in(exif: bytes) -> int:
    """What EXIF (a TIFF file: TIFF 6.0, section 2) says of the orientation; its value stands in its entry."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    entries = (struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * number) for number in range(count))
    return next((value for tag, _, _, value in entries if tag == _ORIENTATION), 1)


_COLOUR_MAP, _SAMPLE_FORMAT = 320, 339
"""Tags of a TIFF (TIFF 6.0, sections 5 and 19)."""
_WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC


def _to_rgb_or_grey(image: Image.Image) -> Image.Image:
    """Mode RGB or L from every mode Pillow has, over white where it is transparent; the image itself if it is so."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_8_bits(image)
        if isinstance(key := image.info.get("transparency"), int):
            grey.putalpha(Image.fromarray(np.asarray(image) != key))
        image = grey
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.mode == "La":
        image = image.convert("LA")
    image = _with_its_palette(_with_its_key(image))
    if _is_transparent(image):
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        over = Image.new("RGB", image.size, BACKGROUND)
        over.paste(image, mask=image)
        return over
    return image if image.mode in ("RGB", "L") else image.convert("L" if image.mode == "1" else "RGB")


def _with_its_key(image: Image.Image) -> Image.Image:
    """The image without a transparency of another mode, such as Pillow's `convert` and `quantize` leave behind; and the
    transparent colour of a 16-bit PNG with the high bytes of its samples, which are all that Pillow keeps.
    """
    key = image.info.get("transparency")
    foreign = not isinstance(key, (int, bytes)) if image.mode == "P" else isinstance(key, bytes)
    if key is not None and foreign:
        image = image.copy()
        del image.info["transparency"]
    elif image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
    return image


def _with_its_palette(image: Image.Image) -> Image.Image:
    """The image, with the palette of some old TIFFs put right: programs wrote 8-bit values where the format has 16
    bits, and Pillow takes the high bytes, which are 0. libtiff and ImageMagick make this exception, too.
    """
    colours = getattr(image, "tag_v2", {}).get(_COLOUR_MAP)
    if image.mode != "P" or not colours or max(colours) > 255:
        return image
    image = image.copy()
    image.putpalette(np.reshape(colours, (3, -1)).T.astype(np.uint8).tobytes())
    return image


def _is_transparent(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA":  # as `quantize` makes them
        return True
    if image.mode == "RGBA" and image.format == "BMP":  # whose alpha many programs leave at 0; browsers then ignore it
        return image.getbbox(alpha_only=True) is not None
    return image.mode in ("LA", "PA", "RGBA", "RGBa") or (
        image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info
    )


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey 8-bit samples from 16-bit, 32-bit and float ones, whose own conversion in Pillow clips instead of scaling.

    These modes do not say which values are black and white: the narrowest usual range that holds all samples is taken
    (0 to 1 for floats, 0 to 255, 0 to 65535), and failing those the range from the least to the greatest. Modes of
    16 bits keep the high byte, as Pillow does with 16-bit colour. A TIFF says whether it has 12 bits, whether its 32
    bits have a sign, and whether 0 is white (TIFF 6.0, sections 8 and 19: BitsPerSample, SampleFormat,
    PhotometricInterpretation); Pillow passes over these here.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE)
    unsigned = image.mode == "I" and bits == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,)
    grey = _scaled_to_8_bits(image, 12 if bits == (12,) else 16, unsigned)
    return Image.fromarray(255 - grey if tags.get(PHOTOMETRIC) == _WHITE_IS_ZERO else grey)


def _scaled_to_8_bits(image: Image.Image, bits: int, unsigned: bool) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        sixteen: NDArray[np.uint16] = np.asarray(image)
        return (sixteen >> bits - 8 if bits < 16 or np.max(sixteen) > 255 else sixteen).astype(np.uint8)
    stored = np.asarray(image)
    samples = (stored.view(np.uint32) if unsigned else stored).astype(np.float32)  # ours: the rest is done in place
    np.nan_to_num(samples, copy=False, posinf=0.0, neginf=0.0)
    np.clip(samples, -1e37, 1e37, out=samples)
    low, high = float(np.min(samples)), float(np.max(samples))
    if low < 0 or high > 65535:
        samples -= np.float32(low)
        white = (high - low) or 1.0
    else:
        white = 1.0 if image.mode == "F" and high <= 1 else 255.0 if high <= 255 else 65535.0
    samples *= np.float32(255 / white)
    return np.rint(samples, out=samples).astype(np.uint8)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms  # only here: few pictures are LAB

    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    return transform.apply(image)


def _squash(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to exactly `size`, antialiased, whatever the aspect ratio.

    Older Pillows (10.1, not 13) always resample rows first, which for a picture far higher than wide needs an
    intermediate image of the new width x the old height: 2.4 GB and a minute for a strip of 1 x 2,000,000 pixels. Such
    pictures are resampled columns first.
    """
    if size[0] * image.height > max(image.width * image.height, 1 << 24):
        image = image.resize((image.width, size[1]), Image.Resampling.BILINEAR)
    return image.resize(size, Image.Resampling.BILINEAR)


_SAME_GAMMA = 0.05
"""Relative difference to sRGB's gamma, taken as 1 / 2.2, that is passed over, as libpng does."""

_SRGB_NAMES = (b"sRGB IEC61966-2", b"sRGB built-in", b"sRGB Gamut with sRGB Transfer")
"""What most profiles that are sRGB are called, so that it need not be measured. In full: those of other colour spaces
speak of sRGB too, such as "DCI-P3 D65 Gamut with sRGB Transfer" in the photos of phones. "sRGB IEC61966-2.1 (Linear RGB
Profile)" is another one, so what speaks of that is measured."""


_PROFILED = {
    b"RGB ": ("RGB", ("RGB", "RGBA", "P")),
    b"GRAY": ("L", ("L", "LA", "I", "I;16", "I;16B")),
    b"CMYK": ("CMYK", ("CMYK",)),
}
"""Colour space of a profile (ICC.1, section 7.2.6) → the mode that a transform takes, and those of the pictures that it
can describe. Black and white are the same in all, so that those of one bit need none."""


def _profile(image: Image.Image) -> tuple[bytes, str] | None:
    """The colour profile of an image, and the mode of what it converts; None where it has none that fits."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes):
        return None
    mode, described = _PROFILED.get(profile[16:20], ("", ()))
    return (profile, mode) if image.mode in described else None


def _to_srgb(pixels: Image.Image, profile: tuple[bytes, str] | None, source: Image.Image) -> Image.Image:
    """sRGB pixels, if the source carries a colour profile, or the gamma of a PNG (its gAMA chunk: PNG, third edition,
    section 11.3.2.2), that says something else.

    Done on the small picture, where it costs a millisecond, and three where the profile was not met lately. A damaged
    profile is left aside: a picture in slightly wrong colours is still the picture.
    """
    gamma = source.info.get("gamma")
    described = source.info.get("icc_profile") is not None or "srgb" in source.info
    if not described and isinstance(gamma, float) and 0.1 < gamma < 10:
        if abs(2.2 * gamma - 1) < _SAME_GAMMA:
            return pixels
        samples: list[int] = encode_srgb(np.linspace(0, 1, 256) ** (1 / gamma)).tolist()
        return pixels.point(samples * len(pixels.getbands()))
    if profile is None:
        return pixels
    content, mode = profile
    if mode == "RGB":
        text = content.replace(b"\0", b"")  # names are ASCII in version 2, UTF-16 in version 4
        if b"inear" not in text and any(name in text for name in _SRGB_NAMES):
            return pixels
    try:
        transform = _transform_to_srgb(content, mode)
        return pixels if transform is None else transform.apply(pixels.convert(mode))
    except Exception:
        return pixels


_PROBE = Image.fromarray(
    np.stack(np.meshgrid(*[np.linspace(0, 255, 9)] * 3), axis=-1).reshape(27, 27, 3).astype(np.uint8)
)
_SAME_COLOUR = 4
"""Levels by which sRGB profiles under other names (camera makers', Facebook's "c2") differ from sRGB by rounding."""


@functools.lru_cache(maxsize=4)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Little CMS' transform from a colour profile, None if it gives what Pillow gives for this mode but for rounding.

    It takes longer to make than to use, and all photos of a phone have the same profile. Threads may share it, as it
    does not change in use. Raises one of several exceptions of Pillow's if the profile is damaged.
    """
    from PIL import ImageCms  # only here: Pillow can be built without it

    srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.PERCEPTUAL
    # cmsFLAGS_NOOPTIMIZE for inks: Little CMS takes 24 ms for a table of all of them, which serves far larger pictures.
    flags: Any = 0x0100 if mode == "CMYK" else 0
    transform = ImageCms.buildTransform(io.BytesIO(profile), srgb, mode, "RGB", intent, flags)
    probe = _PROBE.convert(mode)
    difference = np.asarray(transform.apply(probe)).astype(np.int16) - np.asarray(probe.convert("RGB"))
    return None if np.abs(difference).max() <= _SAME_COLOUR else transform


def encode_srgb(light: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Samples of linear light, 0 to 1, any shape: the transfer function of IEC 61966-2-1."""
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded), np.uint8)
