"""The file formats that caplet reads, how their files start, and what of Pillow reads them."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from caplet.errors import ImageError
from caplet.image_header import gif_canvas, jpeg_2000_canvas, webp_canvas


class Format(NamedTuple):
    """A file format, and the Pillow plugin that reads it.

    Plugins are named here, and imported when the first such file comes, instead of asking `Image.open`: that tries
    them in turn, and checks sizes against a process-wide limit with a process-wide warning.
    """

    name: str
    """As Pillow calls it, except for WebP, HEIC and JPEG 2000."""
    stem: str
    """The plugin is called `<stem>ImagePlugin`, and its class `<stem>ImageFile`."""
    signatures: tuple[bytes, ...] = ()
    """What its files start with; none where it takes more to tell, as `identify` does."""
    package: str = ""
    """Where the class is, if not in Pillow."""
    sequential: bool = False
    """Rows are decoded one after the other, so that those before the point where a file breaks off are good."""
    canvas: Callable[[io.RawIOBase], tuple[int, int]] | None = None
    """Reads width and height from the header of formats whose opened images tell them too late or wrongly: Pillow
    allocates the canvas of a GIF or WebP as soon as it opens one, and of the two sizes that a JPEG 2000 may state, it
    reports the one that decoding ignores."""

    def plugin(self) -> ModuleType:
        """The module with the class. Raises ModuleNotFoundError."""
        return importlib.import_module(self.package or f"PIL.{self.stem}ImagePlugin")


HEIC_PACKAGE = "pillow_heif"
"""What reads HEIC."""

# What cameras, phones, scanners, browsers and image libraries write as a picture, each with a signature of its own and
# a decoder in C, or in NumPy (`image_file`). Left out of what Pillow can open, on purpose:
# EPS, WMF (run Ghostscript or the system's renderer); BUFR, GRIB, HDF5 (stubs that call foreign handlers); MPEG, FLI
# (video); PSD, FPX, MIC (layered documents); ICO, CUR, ICNS, BLP, DDS, FTEX, WAL (icons and textures: containers whose
# header need not tell the size of what is inside); FITS, MCIDAS, SPIDER, IPTC (science); TGA, DIB, PCD, GBR, XVThumb
# (no signature, or a weak one: noise passes for them); QOI, XBM, XPM, MSP, IM, IMT, PCX, DCX, PIXAR, SGI, SUN (extinct
# or exotic, several of them decoded a byte at a time in Python). A PIL image of any of these is welcome: the caller has
# opened it. So is one of the variants in `IN_PYTHON`, which Pillow decodes in Python too.
JPEG = Format("JPEG", "Jpeg", (b"\xff\xd8\xff",), sequential=True)  # also MPO: its first picture is a plain JPEG
PNG = Format("PNG", "Png", (b"\x89PNG\r\n\x1a\n",), sequential=True)  # also APNG: its default picture
GIF = Format("GIF", "Gif", (b"GIF87a", b"GIF89a"), sequential=True, canvas=gif_canvas)
BMP = Format("BMP", "Bmp", (b"BM",), sequential=True)
# Also PBM, PGM and grey PFM.
_PPM = Format("PPM", "Ppm", (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf"), sequential=True)
TIFF = Format("TIFF", "Tiff", (b"II*\0", b"MM\0*", b"II+\0"), sequential=True)
_WEBP = Format("WebP", "WebP", canvas=webp_canvas)
_AVIF = Format("AVIF", "Avif")
HEIC = Format("HEIC", "Heif", package=HEIC_PACKAGE)
_JPEG_2000 = Format("JPEG 2000", "Jpeg2K", (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"), canvas=jpeg_2000_canvas)
_FORMATS = (JPEG, PNG, GIF, BMP, _PPM, TIFF, _WEBP, _AVIF, HEIC, _JPEG_2000)

MAY_BE_TRUNCATED = frozenset(file_format.name for file_format in _FORMATS if file_format.sequential)
"""Names, which are also Pillow's, of the formats of which a part can be used."""

IN_PYTHON = {
    "bmp_rle": ("run-length encoded BMP", "PNG"),
    "ppm_plain": ("PPM whose numbers are text", "binary PPM, or as PNG"),
}
"""Variants of the formats above that Pillow decodes in Python: name of the decoder → variant, and what to save it as.
They take up to a gigabyte for a kilobyte, and seconds a megapixel in which no other thread of Python runs."""

_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
"""What its files start with: the codestream alone, or in boxes (ISO/IEC 18181-2). Pillow does not read it."""
HEAD = 64
"""Bytes that tell every format apart."""


def _import_all() -> None:
    """Import all of Pillow that photos may need, which is otherwise imported when a photo first needs it.

    A child forked while another thread imports something would wait for ever for that thread, which it does not have.
    """
    for file_format in _FORMATS:
        with contextlib.suppress(ImportError):  # not every plugin is installed everywhere
            file_format.plugin()
    with contextlib.suppress(ImportError):
        importlib.import_module("PIL.ImageCms")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_import_all)


def identify(head: bytes, subject: str) -> Format:
    """The format of a file that starts with these bytes; `HEAD` of them are enough.

    Raises:
        ImageError: no format caplet reads starts like this.
    """
    for file_format in _FORMATS:
        if head.startswith(file_format.signatures):
            return file_format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _WEBP
    if head[4:8] == b"ftyp":  # ISO/IEC 14496-12, section 4.3: the length, the major brand, its version, more brands
        more = head[16 : int.from_bytes(head[:4], "big")]
        brands = [head[8:12], *(more[start : start + 4] for start in range(0, len(more), 4))]
        # The first brand that names a codec tells; mif1 and msf1 name none.
        if next((brand for brand in brands if brand in (*_HEIC_BRANDS, *_AVIF_BRANDS)), None) in _HEIC_BRANDS:
            return HEIC
        if brands[0] in (*_AVIF_BRANDS, b"mif1", b"msf1"):
            return _AVIF
    if not head:
        raise ImageError(subject, "is empty", "get a complete copy")
    if head.startswith(_JPEG_XL):
        raise ImageError(subject, "is a JPEG XL photo, which Pillow does not read", "convert it to JPEG")
    raise ImageError(
        subject, "not an image caplet can read", "use JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP, PPM or JPEG 2000"
    )
