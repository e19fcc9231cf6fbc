"""What Pillow mistakes in a file, put right before its pixels are decoded, or in a GIF after."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from typing import Any, cast

from PIL import Image, ImageFile, ImagePalette, TiffTags

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of a TIFF (TIFF 6.0, section 8)."""
_YCBCR = 6  # a value of the second

_NATIVE = {"F;32BF": "F;32NF", "I;16BS": "I;16NS", "I;32BS": "I;32NS"}


def correct_samples(image: ImageFile.ImageFile) -> None:
    """Correct the raw modes of a TIFF that is yet to be decoded, where Pillow mistakes how its samples are stored.

    libtiff gives them in the machine's byte order; and where each colour has a plane of its own, they may have 16 bits.
    """
    tags, tiles = cast(Any, image).tag_v2, cast("list[Any]", image.tile)
    for number, tile in enumerate(tiles):
        rawmode = tile[3][0]
        if tile[0] == "libtiff":
            rawmode = _NATIVE.get(rawmode, rawmode)
        elif tags.get(BITS_PER_SAMPLE, (1,))[0] == 16 and rawmode in list("RGBACMYK"):
            rawmode += ";16B" if tags.prefix == b"MM" else ";16L"
        elif rawmode == "RGBX" and tags.get(PHOTOMETRIC) == _YCBCR:  # so Pillow before 13; it is what libtiff makes
            rawmode = cast(Any, image)._mode = "YCbCr"
        tiles[number] = _read_as(rawmode, tile)


def leave_exif(image: ImageFile.ImageFile) -> None:
    """Keep Pillow from reading the directories of a TIFF's EXIF and GPS after its pixels.

    caplet needs none of it, and there need be none: a program that copies all tags of a photo into a smaller one copies
    where these directories were. Whatever is there is then read as one, also past the end of the file.
    """
    exif = image.getexif()
    for tag in TiffTags.TAGS_V2_GROUPS:
        exif.pop(tag, None)


def correct_palette(image: ImageFile.ImageFile, reader: io.RawIOBase) -> None:
    """Have a BMP of 4 or 8 bits read as such: Pillow takes it for one of another depth if its palette is black and
    white, or the sixteen darkest greys in their order.
    """
    reader.seek(14)
    header = reader.read(16)
    (bits,) = struct.unpack_from("<H", header, 10 if header[:4] == b"\x0c\0\0\0" else 14)
    greys = {("1", 4): (0, 255), ("1", 8): (0, 255), ("L", 4): range(16)}.get((image.mode, bits))
    if greys:
        private = cast(Any, image)
        private._mode, private.palette = "P", ImagePalette.raw("RGB", bytes(grey for grey in greys for _ in "RGB"))
        private.tile = [_read_as("P;4" if bits == 4 else "P", image.tile[0])]


_WIDENED = {"L;2": 85, "L;4": 17}
"""Raw modes of a PNG's grey samples of 2 and 4 bits, and what Pillow multiplies them by."""


def correct_key(image: ImageFile.ImageFile) -> None:
    """Widen the transparent grey of a PNG that is yet to be decoded, as Pillow widens its samples of 2 and 4 bits."""
    rawmode: Any = image.tile[0][3] if image.tile else None
    if rawmode in _WIDENED and "transparency" in image.info:
        image.info["transparency"] *= _WIDENED[rawmode]


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends the pixels of a JPEG (ITU-T T.81, section B.1.1): any marker but those that stand among them."""
_LOOK_AHEAD = bytes(8)
"""What libjpeg wants to see behind the last pixels before it decodes them."""


def bare_jpeg(data: bytes, scan: int) -> bytes:
    """A JPEG up to the end of its pixels, without an end marker.

    The panoramas of Samsung's phones have none: a film follows, in which libjpeg looks for it and finds other markers.
    If pixels are missing, the result still lacks them, and is truncated. But of those in the last corner, libjpeg may
    make a few out of what is put there for it to look ahead: a file that lacks some 20 bytes passes for a whole one.

    Args:
        data: the file, or as much of it as has the pixels.
        scan: where they start, as `jpeg_scan` gives it.
    """
    marker = _MARKER.search(data, scan)
    return data[: marker.start() if marker else len(data)] + _LOOK_AHEAD


_ESSENTIAL = (b"tRNS", b"gAMA", b"sRGB", b"eXIf")
"""Chunks of a PNG whose loss would show: transparency, colours but for a profile, orientation."""
_LONGEST_PROFILE = 2**24
"""Bytes of a colour profile that are unpacked; printers' have up to some millions."""


def bare_png(reader: io.RawIOBase) -> tuple[bytes, bytes | None]:
    """A PNG (third edition, section 5) without the chunks that no picture needs or whose checksum is wrong; and its
    colour profile, if it has one.

    Pillow refuses the picture for such a checksum, and for a text or profile of more than a mebibyte. Other programs
    leave a chunk aside whose checksum is wrong, if its name starts with a small letter (5.4: it is ancillary).
    """
    bare, profile = bytearray(reader.read(8)), None
    while len(head := reader.read(8)) == 8:
        kind, body = head[4:], reader.read(int.from_bytes(head[:4], "big") + 4)
        content, checksum = body[:-4], body[-4:]
        if kind[:1].isupper() or (kind in _ESSENTIAL and _checksum(kind, content) == checksum):
            bare += head + body
        elif kind == b"iCCP" and _checksum(kind, content) == checksum:
            with contextlib.suppress(zlib.error):
                packed = content.partition(b"\0")[2][1:]  # behind its name and the kind of compression
                profile = zlib.decompressobj().decompress(packed, _LONGEST_PROFILE)
        if kind == b"IEND":
            break
    return bytes(bare), profile


def _checksum(kind: bytes, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big")


def clear_around_frame(image: ImageFile.ImageFile) -> None:
    """Make a GIF transparent around its first frame, as browsers do; Pillow shows the palette's first colour there."""
    frame = cast(Any, image).dispose_extent
    if frame != (0, 0, *image.size) and "transparency" not in image.info:
        drawn = Image.new("L", image.size)
        drawn.paste(255, frame)
        image.putalpha(drawn)


def _read_as(rawmode: str, tile: Any) -> Any:
    """A tile of an image that is yet to be decoded, with another raw mode."""
    args = (rawmode, *tile[3][1:])
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)
