"""From an image file to a Pillow image with its pixels in memory; limits while it is read, truncated files."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np
from PIL import Image, ImageFile

from caplet.errors import NO_MEMORY, CapletError, ImageError
from caplet.image_corrections import (
    bare_jpeg,
    bare_png,
    clear_around_frame,
    correct_key,
    correct_palette,
    correct_samples,
    leave_exif,
)
from caplet.image_formats import BMP, GIF, HEAD, HEIC, IN_PYTHON, JPEG, PNG, TIFF, Format, identify
from caplet.image_header import ARITHMETIC, LOSSLESS, jpeg_frame, jpeg_scan, tiff_repeats
from caplet.image_limits import check_size, longest_file, too_long

_MOST_READS = 200_000
"""Of a header, and of what follows it; every 512 bytes allow another. Every marker, chunk, block and character takes a
read or two, in Python, so that megabytes of them would take many seconds. Real headers take some hundreds of reads, and
encoders write the pixels of a PNG in chunks of kilobytes."""

_SCAN, _MOST_SCANS = b"\xff\xda", 200
"""What starts a scan in the pixels of a JPEG, and how many scans there may be: in a progressive JPEG, each may take few
bytes but goes over the whole picture, and encoders write a dozen."""


class _Reader(io.RawIOBase):
    """A file as Pillow's decoders see it: notes when they read past its end, and can pretend it ends properly.

    What they read into memory is limited: a header may state any length, and a sparse file may even have it.
    """

    def __init__(self, file: BinaryIO, subject: str, most: int) -> None:
        self._file = file
        self._subject, self._most = subject, most
        self._bytes_left = most
        self._ending = b""
        self._reads_left: float = _MOST_READS
        self._too_many_reads = "its header does not end"
        self._scans_left: int | None = None
        self.scans_from = 0
        """Where the first scan can start: before it, the same bytes may stand in a colour profile."""
        self._has_exif = False
        self.ran_dry = False

    def start_pixels(self, ending: bytes, *, count_scans: bool) -> None:
        """The header is over, and the limits hold anew. The next read past the end gets `ending` instead."""
        self._ending = ending
        self._scans_left = _MOST_SCANS if count_scans else None
        self._reads_left, self._bytes_left = _MOST_READS, self._most
        self._too_many_reads = "it has far more chunks than a picture needs"

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError(self._too_many_reads)
        if size is None or not 0 <= size <= self._bytes_left:  # all there is, or more than may be left of it
            position = self.tell()
            size = self.seek(0, os.SEEK_END) - position
            self.seek(position)
            if size > self._bytes_left:
                raise too_long(self._subject, self._most)
        data = self._file.read(size)
        self._bytes_left -= len(data)
        self._reads_left += len(data) / 512
        if not data and size > 0:
            self.ran_dry = True
            data, self._ending = self._ending, b""
        if data.startswith(b"Exif\0\0"):  # Pillow joins the EXIF of all segments of a JPEG, so it gets only the first
            data, self._has_exif = bytes(len(data)) if self._has_exif else data, True
        if self._scans_left is not None:
            self._scans_left -= data.count(_SCAN, max(self.scans_from + len(data) - self.tell(), 0))
            if self._scans_left < 0:
                raise ValueError("it has far more scans than a picture needs")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


_MOST_THUMBNAILS = 4
"""In a HEIC of which one may be decoded: each that turns out to be damaged takes as long as a photo, and there may be a
thousand. Cameras write up to three."""

Box: TypeAlias = tuple[float, float, float, float]
"""Left, upper, right and lower edge of a part of a picture, in pixels."""


def decode_file(
    file: BinaryIO, subject: str, *, least_side: int, max_pixels: int, allow_truncated: bool
) -> tuple[ImageFile.ImageFile, Box | None]:
    """The first picture in an image file, its pixels in memory, neither turned upright nor converted.

    Args:
        file: ours to read and seek; its position is where the file starts.
        subject: what to call it in an error message.
        least_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as no side gets shorter than this. Of
            a HEIC, a thumbnail may be decoded that has no side shorter than half of this: it was reduced with care.
        max_pixels: most pixels (width x height) it may have; checked before anything is decoded.
        allow_truncated: use what there is of a file that breaks off, where the format allows.

    Returns:
        The image; and, if it was decoded at a part of its size, the box in it that the picture fills. That is not all
        of it where a side cannot be divided evenly: the last pixels along it then cover less than the others.

    Raises:
        ImageError: the file is unreadable, damaged, truncated, empty, too large, or in another format.
        Warning: one of Pillow's, where the process makes errors of warnings.
        OSError, ImportError, MemoryError: what the system lacks, which says nothing about the file.
    """
    file_format = identify(file.read(HEAD), subject)
    limits = _Limits(least_side, max_pixels, allow_truncated)
    try:
        return _decode(file_format, file, subject, limits)
    except ImageError as refusal:
        bare = _bare(file_format, file, subject, limits, refusal.__cause__)
        if bare is None:
            raise
    data, profile = bare
    image, box = _decode(file_format, io.BytesIO(data), subject, limits)
    if profile:
        image.info["icc_profile"] = profile
    return image, box


class _Limits(NamedTuple):
    """What `decode_file` is told about how to decode."""

    least_side: int
    max_pixels: int
    allow_truncated: bool


_LONGEST_COPY = 2**27
"""Bytes of a file that are copied to leave out what Pillow fails at."""


def _bare(
    file_format: Format, file: BinaryIO, subject: str, limits: _Limits, error: BaseException | None
) -> tuple[bytes, bytes | None] | None:
    """A file without what Pillow fails at and other programs do not, and its colour profile if that was left out.

    Args:
        error: what Pillow raised; None if caplet has refused the file.

    Returns:
        None if the file has nothing of the kind.
    """
    if error is None or not (file_format is JPEG or (file_format is PNG and _is_in_metadata(error))):
        return None
    most = min(longest_file(limits.max_pixels), _LONGEST_COPY)
    file.seek(0)
    data = file.read(most)
    reader = _Reader(io.BytesIO(data), subject, most)
    with contextlib.suppress(ValueError):  # of too many reads
        if file_format is PNG:
            return bare_png(reader) if len(data) < most else None
        scan = jpeg_scan(reader)
        return (bare_jpeg(data, scan), None) if scan else None
    return None


def _decode(
    file_format: Format, file: BinaryIO, subject: str, limits: _Limits
) -> tuple[ImageFile.ImageFile, Box | None]:
    """As `decode_file`, but of a file that is taken as it is."""
    least_side, max_pixels, allow_truncated = limits
    file.seek(0)
    reader = _Reader(file, subject, longest_file(max_pixels))
    try:
        if file_format.canvas is not None:
            check_size(file_format.canvas(reader), max_pixels, subject)
            reader.seek(0)
        image = _open(reader, file_format, subject)
        check_size(image.size, max_pixels, subject)
        box = None
        if file_format is TIFF:
            check_size(_tile_size(image), max(max_pixels, _TILE_ALLOWED), subject)
            reader.seek(0)
            # Of a tag that is there twice, libtiff takes the first and Pillow before 13 the last; with other samples in
            # its tiles than Pillow expects, that reads far behind them.
            if decoder_of(image) == "libtiff" and tiff_repeats(reader):
                raise ValueError("its directory has a tag twice")
            leave_exif(image)
            correct_samples(image)
        elif file_format is BMP:
            correct_palette(image, reader)
        elif file_format is PNG:
            correct_key(image)
        elif file_format is JPEG:
            box = _draft(image, reader, least_side)
        elif file_format is HEIC and len(image.info.get("thumbnails", ())) <= _MOST_THUMBNAILS:
            # Takes only a thumbnail with the photo's shape, crop, orientation and profile.
            image.draft(None, (least_side // 2, least_side // 2))
        _load(image, reader, file_format, subject, allow_truncated)
        if file_format is GIF:
            clear_around_frame(image)
        return image, box
    except (CapletError, Warning, ImportError, MemoryError):
        raise
    except Exception as error:
        if _is_system_error(error):
            raise
        if reader.ran_dry or _says_truncated(error):
            raise _truncated(file_format, subject, allow_truncated) from error
        if isinstance(error, Image.DecompressionBombError):
            cause = f"too large: Pillow's {file_format.name} decoder has a limit of its own (Image.MAX_IMAGE_PIXELS)"
            raise ImageError(subject, cause, "shrink it, or convert it to PNG") from error
        if _is_metadata_limit(error):
            raise refused(error, subject) from error
        if _is_missing_decoder(error):
            raise _not_in_this_pillow(file_format, subject) from error
        if _is_unknown_variant(error):
            cause = f"is a kind of {file_format.name} ({_text_of(error)}), which caplet does not read"
            raise ImageError(subject, cause, "save it as PNG") from error
        raise ImageError(
            subject, f"damaged {file_format.name} file: cannot be decoded ({_text_of(error)})", "get an intact copy"
        ) from error


def _open(reader: _Reader, file_format: Format, subject: str) -> ImageFile.ImageFile:
    try:
        plugin = file_format.plugin()
    except ModuleNotFoundError as error:
        if file_format is HEIC:
            remedy = "pip install pillow-heif, or convert it to JPEG"
            raise ImageError(subject, "is a HEIC photo, which Pillow does not read", remedy) from error
        raise _not_in_this_pillow(file_format, subject) from error
    if not getattr(plugin, "SUPPORTED", True):  # there, without the library: AVIF in the wheels of Pillow 11.2, for one
        raise _not_in_this_pillow(file_format, subject)
    image: ImageFile.ImageFile = getattr(plugin, f"{file_format.stem}ImageFile")(reader)
    if decoder_of(image) in IN_PYTHON:
        variant, alternative = IN_PYTHON[decoder_of(image)]
        raise ImageError(subject, f"is a {variant}, which caplet does not read", f"save it as {alternative}")
    return image


def _draft(image: ImageFile.ImageFile, reader: _Reader, least_side: int) -> Box | None:
    """Have a JPEG decoded at a part of its size, if it is large enough; returns the box that the picture then fills."""
    reader.seek(0)
    frame = jpeg_frame(reader)
    reader.scans_from = reader.tell() if frame else 0
    if frame in ARITHMETIC:
        image.decodermaxblock = sys.maxsize  # libjpeg cannot wait for more within such a scan
    if frame in LOSSLESS:  # which libjpeg cannot decode at a part of its size
        return None
    full = image.size
    drafted = image.draft(None, (least_side, least_side))
    return None if drafted is None or image.size == full else drafted[1]


_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""Tags of a TIFF (TIFF 6.0, section 15)."""
_TILE_ALLOWED = 2**20
"""Pixels of a TIFF's tile that no limit refuses: small pictures have tiles larger than themselves."""


def _tile_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Width and height of a TIFF's tiles, each decoded whole; (1, 1) where it has none."""
    tags = cast(Any, image).tag_v2
    return max(tags.get(_TILE_WIDTH, 1), 1), max(tags.get(_TILE_LENGTH, 1), 1)


def decoder_of(image: ImageFile.ImageFile) -> str:
    """Pillow's name of the decoder that an image is yet to go through; empty if there is none."""
    return str(image.tile[0][0]) if image.tile else ""


def _load(
    image: ImageFile.ImageFile, reader: _Reader, file_format: Format, subject: str, allow_truncated: bool
) -> None:
    """Decode the pixels, or as many as there are if that is allowed."""
    lenient = allow_truncated and file_format.sequential
    # An end-of-image marker makes libjpeg hand out what it has, which for a progressive JPEG is the whole picture.
    ending = b"\xff\xd9" if lenient and file_format is JPEG else b""
    # JPEGs that are not progressive have at most a scan per colour, and counting takes time.
    reader.start_pixels(ending, count_scans=file_format is JPEG and "progressive" in image.info)
    # Raw rows are joined from blocks, which takes quadratic time if blocks are far shorter than a row.
    image.decodermaxblock = max(image.decodermaxblock, 8 * image.width)
    try:
        if decoder_of(image) == "ppm":
            _load_ppm(image, reader)
        else:
            image.load()
    except Exception as error:
        reader.ran_dry |= _says_truncated(error)
        if not (lenient and reader.ran_dry):
            raise
        image.tile = []  # nothing more to decode: Pillow now takes the rows it has for the picture
    # A whole file of these formats is never read past its end, so a truncated one is noticed even where the process has
    # told Pillow to be lenient. WebP's and AVIF's decoders refuse it anyway; those of JPEG 2000 and HEIC then do as the
    # process says.
    if file_format.sequential and reader.ran_dry and (not lenient or _is_blank(image)):
        raise _truncated(file_format, subject, allow_truncated)


_SAMPLES_AT_A_TIME = 1 << 18


def _load_ppm(image: ImageFile.ImageFile, reader: _Reader) -> None:
    """Decode a PPM whose white is not 255, or a PGM whose white is neither 255 nor 65535; missing pixels are black.

    As Pillow does, but that scales sample by sample in Python, for seconds a megapixel.
    """
    _, _, start, (_, maxval) = cast("tuple[str, object, int, tuple[str, int]]", image.tile[0])
    stored = np.dtype(np.uint8 if maxval < 256 else ">u2")
    white, dtype = (65535, np.int32) if image.mode == "I" else (255, np.uint8)
    scaled = np.rint(np.arange(256**stored.itemsize) / maxval * white).clip(max=white).astype(dtype)
    samples = np.zeros((image.height, image.width, 3) if image.mode == "RGB" else (image.height, image.width), dtype)
    flat, done = samples.reshape(-1), 0
    reader.seek(start)
    while done < flat.size and (data := reader.read(stored.itemsize * min(_SAMPLES_AT_A_TIME, flat.size - done))):
        values = np.frombuffer(data, stored, len(data) // stored.itemsize)
        flat[done : done + values.size] = scaled[values]
        done += values.size
    image.im, image.tile = Image.fromarray(samples).im, []


def _is_system_error(error: Exception) -> bool:
    """Whether the operating system failed. EINVAL does not count: damaged files send decoders to impossible offsets."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _says_truncated(error: Exception) -> bool:
    text = str(error).lower()
    return "truncated" in text or "unexpected end of file" in text  # Pillow; libheif


def _is_metadata_limit(error: BaseException) -> bool:
    """Whether a PNG has more text than Pillow takes: MAX_TEXT_CHUNK in a chunk, or MAX_TEXT_MEMORY in all."""
    words = str(error).lower()
    return "decompressed data too large" in words or "memory used in text chunks" in words


def _is_in_metadata(error: BaseException) -> bool:
    """Whether Pillow refused a PNG for its metadata, of which it could still leave out what is at fault."""
    return _is_metadata_limit(error) or "bad header checksum" in str(error)


def _is_missing_decoder(error: Exception) -> bool:
    """Whether Pillow was built without the library that decodes this: libtiff, OpenJPEG and the like."""
    words = str(error).lower()
    return words.startswith("decoder ") and words.endswith(" not available")


def _is_unknown_variant(error: Exception) -> bool:
    """Whether Pillow does not know this variant of the format: the mode of a TIFF, its compression (then the number of
    that is the whole message), a raw photo that is a TIFF without a size, the header of a BMP, the bits of a JPEG.
    """
    words = str(error).lower()
    return words.isdigit() or words.startswith(
        ("unknown pixel mode", "unknown raw mode", "missing dimensions", "unsupported bmp", "cannot handle")
    )


def _is_blank(image: Image.Image) -> bool:
    """Whether all pixels are equal, as they are when a file breaks off before the first of them."""
    return not np.diff(np.reshape(image.getextrema(), (-1, 2))).any()


def _not_in_this_pillow(file_format: Format, subject: str) -> ImageError:
    return ImageError(subject, f"this Pillow cannot read {file_format.name}", "update Pillow")


def _truncated(file_format: Format, subject: str, allow_truncated: bool) -> ImageError:
    cause = f"the {file_format.name} file is truncated"
    if not file_format.sequential:
        return ImageError(subject, cause, "get a complete copy: no part of such a file can be decoded alone")
    if allow_truncated:
        return ImageError(subject, f"{cause}, and nothing of the picture can be recovered", "get a complete copy")
    return ImageError(subject, cause, "get a complete copy, or allow truncated images")


def refused(error: Exception, subject: str) -> ImageError:
    """The ImageError for what Pillow, Python or the operating system raised about a photo."""
    if isinstance(error, OSError) and error.strerror:
        if isinstance(error, IsADirectoryError) or (  # for which Windows says that there is no permission
            isinstance(error, PermissionError) and os.path.isdir(error.filename or "")
        ):
            return ImageError(subject, "is a folder", "give a photo in it")
        exhausted = error.errno in (errno.EMFILE, errno.ENFILE)
        remedy = "close some, or raise their limit" if exhausted else "check the path and its permissions"
        return ImageError(subject, f"cannot be read ({error.strerror})", remedy)
    if isinstance(error, MemoryError):
        return ImageError(subject, NO_MEMORY, "shrink it, or get an intact copy")
    if isinstance(error, ImportError):
        return ImageError(subject, f"Pillow cannot be imported ({error})", "check its installation")
    if _is_metadata_limit(error):
        return ImageError(subject, "has more metadata than Pillow's PNG decoder takes", "save it without metadata")
    return ImageError(subject, f"cannot be decoded ({_text_of(error)})", "pass an intact image")


def _text_of(error: Exception) -> str:
    return str(error) or type(error).__name__
