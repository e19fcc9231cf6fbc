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

import os
import struct
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from caplet.arguments import whole_number
from caplet.colour import profile_of, to_rgb_or_grey, to_srgb
from caplet.errors import ArgumentError, CapletError, ImageError, ImageNotFoundError
from caplet.image_corrections import correct_samples
from caplet.image_file import Box, decode_file, decoder_of, refused
from caplet.image_formats import IN_PYTHON, MAY_BE_TRUNCATED
from caplet.image_limits import LARGEST_LIMIT, MAX_PIXELS, check_size
from caplet.image_source import ImageSource, as_file, is_closed, read_stream, subject_of

_LONGEST_SIDE = 2**16
"""Of the result, in pixels."""


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
    subject = subject_of(source)
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
            file, like = as_file(source, subject, max_pixels), None
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
        if is_closed(source) or "closed image" in str(error):  # Pillow's, where pixels had been read before
            raise ImageError(subject, "was closed", "pass it before you close it") from error
        raise refused(error, subject) from error


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
            file = read_stream(image.fp, subject, max_pixels)
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
    profile = profile_of(described)
    # Inks that have a profile are squashed as they are: what RGB they give is left to it.
    colours = image if image.mode == "CMYK" and profile is not None else to_rgb_or_grey(image)
    orientation = _orientation(described)
    if box is not None:  # squashed before it is turned, as the box does not turn with it
        _, _, width, height = box
        size = fit(height, width)[::-1] if orientation in _ON_ITS_SIDE else fit(width, height)
        colours = colours.resize(size, Image.Resampling.BILINEAR, box)
    if orientation in _TRANSPOSITIONS:
        colours = colours.transpose(_TRANSPOSITIONS[orientation])
    if box is None:
        colours = _squash(colours, fit(*colours.size))
    colours = to_srgb(colours, profile, described)
    if colours.mode != "RGB":  # only now: small and upright it takes less time and memory, and gives the same
        colours = colours.convert("RGB")
    return np.array(colours, dtype=np.uint8)


_ORIENTATION = 0x0112
"""The tag of EXIF (CIPA DC-008)."""

_LONGEST_EXIF = 2**16
"""Bytes of EXIF that Pillow may take apart: what fits into a segment of a JPEG."""

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
        if len(exif) > _LONGEST_EXIF or len(in_text) > 3 * _LONGEST_EXIF:
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


def _squash(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to exactly `size`, antialiased, whatever the aspect ratio.

    Older Pillows (10.1, not 13) always resample rows first, which for a picture far higher than wide needs an
    intermediate image of the new width x the old height: 2.4 GB and a minute for a strip of 1 x 2,000,000 pixels. Such
    pictures are resampled columns first.
    """
    if size[0] * image.height > max(image.width * image.height, 1 << 24):
        image = image.resize((image.width, size[1]), Image.Resampling.BILINEAR)
    return image.resize(size, Image.Resampling.BILINEAR)
