"""What the headers of image files say and Pillow does not, or not before it allocates memory: mostly the size.

Each function takes a file that stands at its start.
"""

from __future__ import annotations

import io
import os
import struct


def webp_canvas(file: io.RawIOBase) -> tuple[int, int]:
    """Width and height as a WebP header states them (RFC 9649, sections 2.5 to 2.7)."""
    head = file.read(30)
    chunk = head[12:16]
    if chunk == b"VP8L":  # a picture of one colour takes no more than 28 bytes
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if len(head) < 30:
        return 1, 1  # for Pillow to refuse
    if chunk == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


_LONGEST_COMMENTS = 2**20
"""Bytes of comments before a GIF's first frame: Pillow before 13 joins their blocks in quadratic time."""


def gif_canvas(file: io.RawIOBase) -> tuple[int, int]:
    """Size of the logical screen, enlarged to hold the first frame as Pillow does (GIF89a, sections 18 and 20).

    Raises:
        ValueError: comments of megabytes come first.
    """
    head = file.read(13)
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if len(head) == 13 and head[10] & 0x80:
        file.seek(3 << (head[10] & 7) + 1, os.SEEK_CUR)
    comments = 0
    while (block := file.read(1)) not in (b"", b";"):
        if block == b",":
            x, y, w, h = struct.unpack("<4H", file.read(8).ljust(8, b"\0"))
            return max(width, x + w), max(height, y + h)
        if block == b"!":
            is_comment = file.read(1) == b"\xfe"
            while (length := file.read(1)) not in (b"", b"\0"):
                file.seek(length[0], os.SEEK_CUR)
                comments += length[0] * is_comment
                if comments > _LONGEST_COMMENTS:
                    raise ValueError("it has far longer comments than a picture needs")
    return width, height


_TIFF_LAYOUT = (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 338, 339)
"""Tags of where and how the samples of a TIFF lie; others, as of resolutions and dates, do not change its decoding."""


def tiff_repeats(file: io.RawIOBase) -> bool:
    """Whether the first directory of a TIFF has a tag of its layout twice; they must ascend (TIFF 6.0, section 2)."""
    head = file.read(16)
    order = "<" if head.startswith(b"II") else ">"
    big = b"+" in head[2:4]  # BigTIFF, whose fields are longer
    file.seek(struct.unpack_from(order + "Q", head, 8)[0] if big else struct.unpack_from(order + "I", head, 4)[0])
    count = int.from_bytes(file.read(8 if big else 2), "little" if order == "<" else "big")
    size = 20 if big else 12
    entries = file.read(size * count)
    tags = [struct.unpack_from(order + "H", entries, start)[0] for start in range(0, len(entries) - 1, size)]
    layout = [tag for tag in tags if tag in _TIFF_LAYOUT]
    return len(set(layout)) < len(layout)


LOSSLESS, ARITHMETIC = (0xC3, 0xC7, 0xCB, 0xCF), (0xC9, 0xCA, 0xCD, 0xCE)
"""Frames of JPEGs: without loss; with loss, but with arithmetic coding in place of Huffman's."""


def jpeg_frame(file: io.RawIOBase) -> int:
    """The second byte of the marker of a JPEG's frame, which tells how it is coded (ITU-T T.81, table B.1); or 0."""
    file.seek(2, os.SEEK_CUR)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] >= 0xC0:
        if head[1] == 0xFF:  # markers may follow any number of these
            file.seek(-3, os.SEEK_CUR)
        elif 0xD0 <= head[1] <= 0xDA:  # has no length, or the pixels follow
            return 0
        elif head[1] < 0xD0 and head[1] not in (0xC4, 0xC8, 0xCC):
            return head[1]
        else:
            file.seek(int.from_bytes(head[2:], "big") - 2, os.SEEK_CUR)
    return 0


_SEQUENTIAL = (0xC0, 0xC1)
"""Frames of JPEGs that are neither progressive nor lossless nor arithmetic: those that cameras write."""


def jpeg_scan(file: io.RawIOBase) -> int:
    """Where the coded pixels of a JPEG start, if they are all in one scan of a sequential frame; otherwise 0."""
    if jpeg_frame(file) not in _SEQUENTIAL:
        return 0
    components = file.read(6)[5:]
    file.seek(3 * int.from_bytes(components, "big"), os.SEEK_CUR)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        length = int.from_bytes(head[2:], "big") - 2
        if head[1] == 0xDA:
            return file.tell() + length if file.read(1) == components else 0
        file.seek(length, os.SEEK_CUR)
    return 0


_TILE = 512
"""Fewest pixels that the tiles of a JPEG 2000 may have on average: OpenJPEG allocates some 12 KB a tile as it reads the
header. Encoders make tiles of 64x64 or more."""
_TILES_ALLOWED = 1024
"""As many tiles as this may be smaller: they take 13 MB."""
_MAIN_HEADER = {bytes((0xFF, code)) for code in b"\x50\x52\x53\x55\x57\x59\x5c\x5d\x5e\x5f\x60\x63\x64"}
"""What stands between SIZ and the first tile: CAP, COD, COC, TLM, PLM, CPF, QCD, QCC, RGN, POC, PPM, CRG and COM."""


def jpeg_2000_canvas(file: io.RawIOBase) -> tuple[int, int]:
    """Width and height as the codestream of a JPEG 2000 states them (ISO/IEC 15444-1, section A.5.1).

    Raises:
        ValueError: it states no picture, or would have OpenJPEG allocate more than the pixels of a picture take.
    """
    if not _seek_codestream(file) or len(head := file.read(42)) < 42:
        return 1, 1  # for Pillow to refuse
    if not head.startswith(b"\xff\x4f\xff\x51"):
        raise ValueError("its codestream does not start with its size")  # OpenJPEG looks for it further on
    right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top, components = struct.unpack_from(
        ">8IH", head, 8
    )
    width, height = right - left, bottom - top
    if min(width, height, tile_width, tile_height) < 1:
        raise ValueError("its codestream has no pixels")
    if not 1 <= components <= 4:
        raise ValueError(f"its codestream has {components} components")
    tiles = -((tiles_left - right) // tile_width) * -((tiles_top - bottom) // tile_height)
    if tiles > max(width * height // _TILE, _TILES_ALLOWED):
        raise ValueError("it has far more tiles than a picture needs")
    # OpenJPEG gives each tile a copy of the tables in the header that only part 2 of the standard has (MCT), and at a
    # marker that it does not know goes on by two bytes, not by the segment's length.
    if tiles > 1:
        file.seek(int.from_bytes(head[4:6], "big") - 38, os.SEEK_CUR)
        while (marker := file.read(2)) not in (b"", b"\xff\x90"):
            if marker not in _MAIN_HEADER:
                raise ValueError(f"{marker.hex()} is not a marker of the header of a tiled picture")
            file.seek(int.from_bytes(file.read(2), "big") - 2, os.SEEK_CUR)
    return width, height


def _seek_codestream(file: io.RawIOBase) -> bool:
    """Go to the codestream of a JPEG 2000, bare or in boxes (ISO/IEC 15444-1, section I.4); False if there is none."""
    if file.read(4) == b"\xff\x4f\xff\x51":
        file.seek(0)
        return True
    file.seek(0)
    while len(header := file.read(8)) == 8:
        rest, kind = int.from_bytes(header[:4], "big") - 8, header[4:]
        if rest == -7:  # the length follows, in 8 bytes
            rest = int.from_bytes(file.read(8), "big") - 16
        if kind == b"jp2c":
            return True
        if rest < 0:  # the last box, or none
            return False
        file.seek(rest, os.SEEK_CUR)
    return False
