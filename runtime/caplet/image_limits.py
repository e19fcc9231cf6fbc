"""How large a photo may be: limits that are checked before anything of its size is allocated."""

from __future__ import annotations

from caplet.errors import ImageError

MAX_PIXELS = 120_000_000
"""Default limit on width x height. A 108-megapixel phone photo passes: as a usual JPEG it takes 10 MB of memory, as a
progressive one 320 MB; WebP and float TIFF take up to 17 bytes a pixel, and the costliest, JPEG 2000, up to 30."""

LARGEST_LIMIT = 2**40
"""Most that a limit on pixels can be set to."""

_ROW = 16
"""Pixels that every row counts for at least: Pillow pads it and keeps a pointer to it, 40 bytes for one pixel."""
_ROWS_ALLOWED = 2**16
"""Rows that no limit refuses: they take no memory to speak of."""


def check_size(size: tuple[int, int], max_pixels: int, subject: str) -> None:
    """Refuse pictures without pixels and pictures with too many pixels or rows.

    Raises:
        ImageError: no side may be zero, width x height may not exceed `max_pixels`, and neither may 16 x height unless
            the height is at most 65,536.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(subject, f"has no pixels ({width}x{height})", "pass an image with some")
    if width * height > max_pixels:
        raise ImageError(
            subject,
            f"too large: {width}x{height} is {width * height:,} pixels, the limit is {max_pixels:,}",
            "shrink it, or raise max_pixels if you trust it",
        )
    most = max(max_pixels // _ROW, _ROWS_ALLOWED)
    if height > most:
        raise ImageError(
            subject,
            f"too large: {width}x{height} is {height:,} rows, the limit is {most:,} with {max_pixels:,} pixels",
            "shrink it, or raise max_pixels if you trust it",
        )


def longest_file(max_pixels: int) -> int:
    """The most bytes that are read: four 16-bit samples a pixel, and some metadata.

    That is too few only for files that are read with all that follows the picture: compressed TIFFs of many pages, long
    WebP and AVIF animations, HEIC with films in them.
    """
    return 8 * max_pixels + (1 << 20)


def too_long(subject: str, most: int) -> ImageError:
    """The ImageError for a file of which more than `most` bytes would have to be read."""
    return ImageError(subject, f"longer than {most:,} bytes", "raise max_pixels if you trust it")
