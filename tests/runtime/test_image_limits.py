"""Bombs and truncated files, whatever other threads do and however Pillow's process-wide switches are set."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from caplet import image as image_module
from caplet import image_file
from caplet.errors import CapletError
from caplet.image import load_pixels
from command_line import needs_sparse_files
from pictures import encoded, plain, refusal

PHOTO = Path(__file__).parents[1] / "photos" / "astronaut.jpg"
SEQUENTIAL: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("GIF", {"interlace": False}),
    ("BMP", {}),
    ("PPM", {}),
    ("TIFF", {}),
]
WHOLE: list[tuple[str, dict[str, Any]]] = [("WEBP", {}), ("JPEG2000", {}), ("AVIF", {})]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB").resize((200, 160))


# -- bombs ------------------------------------------------------------------------------------------------------------


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(1 << 20), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gif_bomb(width: int, height: int, frame: tuple[int, int] | None = None) -> bytes:
    """A frame whose disposal is to background colour, for which Pillow allocates a canvas while opening."""
    frame_size = struct.pack("<4H", 0, 0, *(frame or (width, height)))
    control = b"!\xf9\x04\x08\0\0\0\0"
    comment = b"!\xfe\x05hello\0"
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + comment + control + b"," + frame_size + b"\0" + b"\x02\x02\x4c\x01\0;"


def webp_bomb(kind: bytes, width: int = 16383, height: int = 16383) -> bytes:
    side = 16383
    if kind == b"VP8X":
        body = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        body = b"\x2f" + ((side - 1) | (side - 1) << 14).to_bytes(4, "little") + bytes(20)
    else:
        body = b"\x30\x01\0\x9d\x01\x2a" + struct.pack("<HH", side, side) + bytes(20)
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def patched(file_format: str, side: int) -> bytes:
    """A small file whose header states another size."""
    data = bytearray(encoded(Image.new("RGB", (33, 35)), file_format))
    if file_format == "JPEG":
        at = data.index(b"\xff\xc0")
        struct.pack_into(">HH", data, at + 5, side, side)
    elif file_format == "BMP":
        struct.pack_into("<ii", data, 18, side, side)
    elif file_format == "JPEG2000":
        struct.pack_into(">II", data, data.index(b"ihdr") + 4, side, side)
    elif file_format == "TIFF":
        for tag in (256, 257):
            at = data.index(struct.pack("<HH", tag, 4 if data.find(struct.pack("<HH", tag, 4)) > 0 else 3))
            struct.pack_into("<HHII", data, at, tag, 4, 1, side)
    else:
        data = bytearray(f"P6 {side} {side} 255\n".encode()) + bytes(100)
    return bytes(data)


BOMBS = {
    "PNG": png_bomb(50_000, 50_000),
    "GIF": gif_bomb(50_000, 50_000),
    "GIF frame": gif_bomb(10, 10, (50_000, 50_000)),
    "WebP extended": webp_bomb(b"VP8X"),
    "WebP wide": webp_bomb(b"VP8X", 2**24, 8),
    "WebP high": webp_bomb(b"VP8X", 8, 2**24),
    "WebP lossless": webp_bomb(b"VP8L"),
    "WebP lossy": webp_bomb(b"VP8 "),
    **{name: patched(name, 50_000) for name in ("JPEG", "BMP", "TIFF", "JPEG2000", "PPM")},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_at_once_and_without_allocating_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as many programs do; the limit here is ours
    load_pixels(encoded(Image.new("RGB", (8, 8)), name.split()[0].upper()))  # its plugin imported
    peak_before = resident_memory()
    tracemalloc.start()
    start = time.thread_time()
    error = refusal(BOMBS[name])
    seconds = time.thread_time() - start
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(BOMBS[name]) < 20_000
    assert "too large" in str(error) and "120,000,000" in str(error)
    assert seconds < 0.3  # some milliseconds; decoding takes seconds
    assert allocated < 1 << 20 and peak_memory() - peak_before < 4 << 20


def peak_memory() -> int:
    """Peak resident memory of this process since the last call, in bytes."""
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        pytest.skip("only Linux tells how much memory a process had")
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    with contextlib.suppress(OSError):  # where that is forbidden, an earlier test's peak may hide this one's
        forget.write_text("5")
    return peak


def resident_memory() -> int:
    """Resident memory now, in bytes; the next `peak_memory` counts from here."""
    peak_memory()
    return peak_memory()


def test_a_jpeg_2000_whose_header_hides_its_size_is_refused(photo: Image.Image) -> None:
    data = bytearray(encoded(photo, "JPEG2000"))
    at = data.index(b"\xff\x51") + 6
    struct.pack_into(">II", data, at, 50_000, 50_000)
    struct.pack_into(">II", data, at + 16, 50_000, 50_000)
    before = resident_memory()
    refusal(bytes(data))
    assert peak_memory() - before < 8 << 20


@functools.cache
def codestream(side: int, tile: tuple[int, int], components: int = 3, segments: bytes = b"", offset: int = 0) -> bytes:
    """A square picture as a JPEG 2000 codestream whose header states other tiles, components, segments and offset."""
    picture = Image.new("RGB", (side, side), (9, 99, 199))
    data = encoded(picture, "JPEG2000", no_jp2=True)
    end = 4 + int.from_bytes(data[4:6], "big")
    size = data[6:16] + struct.pack(">4I", offset, offset, *tile) + data[32:40]
    size += struct.pack(">H", components) + b"\7\1\1" * components
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + segments + data[end:]


@functools.cache
def jp2_header(size: tuple[int, int]) -> bytes:
    """All of a JP2 before the box of its codestream."""
    whole = encoded(Image.new("RGB", size), "JPEG2000")
    return whole[: whole.index(b"jp2c") - 4]


def boxed(stream: bytes, kind: str) -> bytes:
    """A codestream bare, or in a box of a JP2."""
    header = jp2_header(struct.unpack_from(">II", stream, 8))
    lengths = {"length": struct.pack(">I4s", 8 + len(stream), b"jp2c"), "to the end": b"\0\0\0\0jp2c"}
    lengths["long length"] = struct.pack(">I4sQ", 1, b"jp2c", 16 + len(stream))
    lengths["after a box"] = struct.pack(">I4s3s", 11, b"free", b"") + lengths["length"]
    lengths["after an empty box"] = struct.pack(">I4s", 8, b"free") + lengths["length"]
    lengths["after a long box"] = struct.pack(">I4sQ3s", 1, b"free", 19, b"") + lengths["length"]
    return stream if kind == "bare" else header + lengths[kind] + stream


BOXES = ["bare", "length", "to the end", "long length", "after a box", "after an empty box", "after a long box"]


@pytest.mark.parametrize("kind", BOXES)
def test_a_jpeg_2000_is_measured_by_its_codestream_wherever_that_is(kind: str) -> None:
    expected = load_pixels(boxed(codestream(32, (32, 32)), kind), max_pixels=32 * 32)
    assert (expected == [9, 99, 199]).all()
    forged = {
        "too large: 2000x2000 is": boxed(codestream(2000, (2000, 2000)), kind),
        "far more tiles than a picture needs": boxed(codestream(33, (1, 1)), kind),
        "has 5 components": boxed(codestream(32, (1, 1), components=5), kind),
        "has 0 components": boxed(codestream(32, (1, 1), components=0), kind),
        "no pixels": boxed(codestream(32, (0, 1)), kind),
    }
    before = resident_memory()
    for words, data in forged.items():
        assert words in str(refusal(data, max_pixels=1_000_000))
    assert peak_memory() - before < 4 << 20


def test_a_jpeg_2000_whose_last_box_holds_no_codestream_is_not_searched_over_and_over() -> None:
    data = boxed(codestream(32, (32, 32)), "to the end").replace(b"jp2c", b"free")
    assert "its header does not end" not in str(refusal(data))


def test_a_codestream_that_does_not_start_with_its_size_is_refused() -> None:
    """OpenJPEG would skip what it does not know, two bytes at a time, until it finds the size."""
    data = boxed(codestream(240, (1, 1)), "to the end")
    hidden = data.replace(b"\xff\x4f\xff\x51", b"\xff\x4f\xff\x30\xff\x51")
    before = resident_memory()
    assert "does not start with its size" in str(refusal(hidden))
    assert peak_memory() - before < 4 << 20


@pytest.mark.parametrize("unknown", [b"", b"\xff\x30\0\4\xff\x64\0\2"], ids=["plain", "hidden"])
def test_tables_that_each_tile_of_a_jpeg_2000_gets_a_copy_of_are_refused(unknown: bytes) -> None:
    tables = b"".join(struct.pack(">HHHHH", 0xFF74, 60_008, 0, 0x100 + n, 0) + bytes(60_000) for n in range(4))
    assert (load_pixels(codestream(32, (32, 32), segments=tables)) == [9, 99, 199]).all()
    forged = [codestream(32, (1, 1), segments=unknown + tables)]
    forged += [codestream(33, tile, segments=unknown + tables, offset=1) for tile in ((32, 33), (33, 32))]  # two tiles
    before = resident_memory()
    for data in forged:
        assert "not a marker of the header of a tiled picture" in str(refusal(data))
    assert peak_memory() - before < 4 << 20


def test_what_belongs_in_the_header_of_a_tiled_jpeg_2000_is_passed_over() -> None:
    """By segments, whose content is no marker (ISO/IEC 15444-1, table A.2, and, for CAP and CPF, 15444-15)."""
    codes = b"\x50\x52\x53\x55\x57\x59\x5c\x5d\x5e\x5f\x60\x63\x64"
    segments = b"".join(struct.pack(">BBHH", 0xFF, code, 4, 0xFF74) for code in codes)
    assert "too large" in str(refusal(codestream(64, (32, 32), segments=segments), max_pixels=1))


@pytest.mark.parametrize("tile", [(16, 16), (32, 32), (64, 64), (1000, 16), (5000, 5000)], ids=str)
@pytest.mark.parametrize("offset", [(0, 0), (7, 5)], ids=str)
def test_tiles_as_encoders_make_them_are_read(
    photo: Image.Image, tile: tuple[int, int], offset: tuple[int, int]
) -> None:
    data = encoded(photo, "JPEG2000", tile_size=tile, offset=offset, comment="of tiles")
    np.testing.assert_array_equal(load_pixels(data), plain(photo))


def test_a_large_picture_may_have_tiles_of_32x32() -> None:
    picture = Image.new("L", (1500, 1300), 7)
    assert (load_pixels(encoded(picture, "JPEG2000", tile_size=(32, 32))) == 7).all()
    assert "far more tiles" in str(refusal(encoded(picture, "JPEG2000", tile_size=(16, 28))))


def tiled_tiff(side: int) -> bytes:
    """10x10 black pixels in the corner of a single tile."""
    tile = zlib.compress(bytes(side * side))
    entries = [(256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    entries += [(324, 8 + 2 + 12 * 10 + 4), (325, len(tile))]
    return (
        b"II*\0"
        + struct.pack("<IH", 8, 10)
        + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in entries)
        + bytes(4)
        + tile
    )


def test_the_tiles_of_a_tiff_are_limited_as_each_is_decoded_whole() -> None:
    bomb = tiled_tiff(8192)
    assert (load_pixels(tiled_tiff(1024), max_pixels=100) == 0).all()  # small under any limit
    before = resident_memory()
    assert "too large: 8192x8192 is 67,108,864 pixels" in str(refusal(bomb, max_pixels=20_000))
    assert peak_memory() - before < 4 << 20
    load_pixels(bomb, max_pixels=8192 * 8192)
    assert "damaged" in str(refusal(tiled_tiff(0)))


def tiff_of_two_minds(width: int, big: bool) -> bytes:
    """A tile of black pixels of one bit, as the first tags say, or, as the last do, of three bytes."""
    tile = zlib.compress(bytes(width // 8 * 16))
    entry, count = "<HHQQ" if big else "<HHII", 13
    head = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, count) if big else struct.pack("<2sHIH", b"II", 42, 8, count)
    after = len(head) + struct.calcsize(entry) * count + struct.calcsize("<Q" if big else "<I")
    eights = struct.pack("<4H", 8, 8, 8, 0)
    rows = [(256, 4, 1, width), (257, 4, 1, 16)]
    rows += [(258, 3, 1, 1), (258, 3, 3, int.from_bytes(eights, "little") if big else after)]
    rows += [(259, 3, 1, 8), (262, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, 1), (277, 3, 1, 3)]
    rows += [(322, 4, 1, width), (323, 4, 1, 16), (324, 4, 1, after + len(eights)), (325, 4, 1, len(tile))]
    return (head + b"".join(struct.pack(entry, *row) for row in rows)).ljust(after, b"\0") + eights + tile


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
def test_a_tiled_tiff_that_says_two_things_of_its_samples_is_refused(big: bool) -> None:
    """Pillow 12 and older read what follows the tile in memory, or, if that is not theirs, end the process."""
    assert "its directory has a tag twice" in str(refusal(tiff_of_two_minds(64, big)))
    assert "its directory has a tag twice" in str(refusal(tiff_of_two_minds(1 << 18, big)))


def test_what_a_tiff_says_twice_beside_its_samples_does_no_harm() -> None:
    """Scanners write a date or a resolution twice; libtiff and Pillow read such files."""
    photo = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 20)
    data = bytearray(encoded(photo, "TIFF", compression="tiff_deflate", tiffinfo={305: "a", 315: "a"}))
    directory = int.from_bytes(data[4:8], "little")
    tags = range(directory + 2, directory + 2 + 12 * data[directory], 12)
    at = next(tag for tag in tags if data[tag : tag + 2] == struct.pack("<H", 315))
    data[at : at + 2] = struct.pack("<H", 305)
    assert np.array_equal(load_pixels(bytes(data)), load_pixels(photo))


def test_a_strip_one_pixel_wide_is_resized_in_little_memory() -> None:
    strip = np.tile(np.array([[[10, 20, 30]]], np.uint8), (2_000_000, 1, 1))
    before = resident_memory()
    assert (load_pixels(strip) == [10, 20, 30]).all()
    assert peak_memory() - before < 200 << 20  # rows first, as Pillow does it, would take 2.4 GB


def gif(screen: tuple[int, int], corner: tuple[int, int]) -> bytes:
    """A GIF whose frame of 300x20 lies on, or sticks out of, a screen of this size; its colours hold "," and ";"."""
    picture = Image.fromarray(np.arange(6000).reshape(20, 300).astype(np.uint8))
    picture.putpalette(bytes(255 - place // 3 for place in range(768)))
    data = bytearray(encoded(picture, "GIF"))
    frame = data.index(struct.pack("<cHHHH", b",", 0, 0, 300, 20))
    struct.pack_into("<HH", data, 6, *screen)
    struct.pack_into("<HH", data, frame + 1, *corner)
    return bytes(data)


def without_colours(gif: bytes) -> bytes:
    """The same without its table of colours, in whose place there are a comment of two parts and a stray byte."""
    flags, comment = bytes([gif[10] & 0x7F]), b"!\xfe\x02\0,\x03;,,\0" + b"\0"
    return gif[:10] + flags + gif[11:13] + comment + gif[13 + 768 :]


CANVASES = {
    "GIF": (gif((300, 20), (0, 0)), (300, 20)),
    "GIF screen": (gif((400, 600), (0, 0)), (400, 600)),
    "GIF wide frame": (gif((10, 600), (50, 0)), (350, 600)),
    "GIF high frame": (gif((400, 10), (0, 7)), (400, 27)),
    "GIF comment": (without_colours(gif((400, 10), (0, 7))), (400, 27)),
    "WebP extended": (encoded(Image.new("RGBA", (300, 520)), "WEBP"), (300, 520)),
    "WebP lossless": (encoded(Image.new("RGB", (300, 520)), "WEBP", lossless=True), (300, 520)),
    "WebP of 28 bytes": (b"RIFF\x14\0\0\0WEBPVP8L\x08\0\0\0/\x2b\xc1\x81\0\x88\x88\x08", (300, 520)),  # of one colour
    "WebP lossy": (encoded(Image.new("RGB", (300, 520)), "WEBP"), (300, 520)),
    "JPEG 2000 far off": (
        encoded(
            Image.new("RGB", (300, 520)), "JPEG2000", offset=(9007, 8005), tile_offset=(9000, 8000), tile_size=(64, 64)
        ),
        (300, 520),
    ),
    "JPEG 2000": (encoded(Image.new("RGB", (300, 520)), "JPEG2000", offset=(3, 4), tile_size=(400, 600)), (300, 520)),
}


@pytest.mark.parametrize("name", CANVASES)
def test_a_canvas_is_measured_to_the_pixel_before_pillow_makes_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, (width, height) = CANVASES[name]
    load_pixels(data, max_pixels=width * height)
    monkeypatch.delattr("caplet.image_file._open")
    assert f"too large: {width}x{height} is" in str(refusal(data, max_pixels=width * height - 1))


def test_a_webp_that_ends_in_its_header_is_damaged() -> None:
    assert "damaged WebP file" in str(refusal(CANVASES["WebP lossy"][0][:28]))


def test_rows_of_a_pixel_are_limited_as_pillow_needs_memory_for_each() -> None:
    before = resident_memory()
    error = refusal(png_bomb(1, 119_999_999))
    assert "1x119999999 is 119,999,999 rows, the limit is 7,500,000" in str(error)
    assert peak_memory() - before < 4 << 20
    load_pixels(np.zeros((65_536, 1), np.uint8), max_pixels=65_536)  # small in any case
    load_pixels(np.zeros((80_000, 1), np.uint8), max_pixels=80_000 * 16)
    assert "rows" in str(refusal(np.zeros((80_000, 1), np.uint8), max_pixels=80_000 * 16 - 1))


@pytest.mark.parametrize("door", ["bytes", "PIL", "array"])
def test_the_limit_is_inclusive_and_holds_at_every_door(door: str) -> None:
    image = Image.new("RGB", (30, 20))
    source: Any = {"bytes": encoded(image, "PNG"), "PIL": image, "array": np.asarray(image)}[door]
    load_pixels(source, max_pixels=600)
    assert "30x20 is 600 pixels, the limit is 599" in str(refusal(source, max_pixels=599))


def test_a_limit_above_pillows_own_is_obeyed_without_its_warning() -> None:
    data = png_bomb(20_000, 20_000)
    assert Image.MAX_IMAGE_PIXELS is not None and 2 * Image.MAX_IMAGE_PIXELS < 20_000**2
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "truncated" in str(refusal(data, max_pixels=20_000**2))
        assert "too large" in str(refusal(data, max_pixels=20_000**2 - 1))
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "PIL"])
def test_a_warning_of_pillow_is_an_error_only_where_the_process_says_so_and_is_called_that(file_format: str) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x010F, 2, 100, 5000) + bytes(4)  # beyond its end
    picture = Image.new("RGB", (8, 8))
    data = encoded(picture, "PNG" if file_format == "PIL" else file_format, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = refusal(Image.open(io.BytesIO(data)) if file_format == "PIL" else data)
        assert "warnings are errors in this process" in str(error) and "damaged" not in str(error)
        warnings.filterwarnings("ignore", module="PIL")  # the remedy
        load_pixels(data)


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "WebP"])
def test_where_pillows_own_limit_holds_that_is_what_is_said(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if file_format == "WebP" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("this Pillow's WebP decoder has no limit of its own")
    data = encoded(Image.new("L", (300, 200)), file_format, disposal=2)
    load_pixels(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # Pillow lets up to twice its limit pass
    assert f"too large: Pillow's {file_format} decoder has a limit of its own" in str(refusal(data))


def test_a_very_wide_picture_takes_about_as_long_as_a_square_one() -> None:
    # Pillow's raw decoder joins blocks of 64 KB to rows, which takes time quadratic in the length of a row.
    def seconds(width: int, height: int) -> float:
        data = f"P6 {width} {height} 255\n".encode() + bytes(3 * width * height)
        start = time.thread_time()
        load_pixels(data)
        return time.thread_time() - start

    assert min(seconds(12_000_000, 2) for _ in range(2)) < 6 * min(seconds(6000, 4000) for _ in range(3))


GIF, PNG = b"GIF89a" + bytes([9, 0, 9, 0, 0, 0, 0]), encoded(Image.new("RGB", (9, 9)))
NOTHING = b"\0\0\0\0teSt" + zlib.crc32(b"teSt").to_bytes(4, "big")
ENDLESS_HEADERS = {
    "GIF of zeros": GIF + bytes(3_000_000),
    "GIF of extensions": GIF + b"!\xfe\x01x\0" * 700_000,
    "GIF of blocks": GIF + b"!\xfe" + b"\x01x" * 1_500_000,
    "PNG of chunks": PNG[:33] + NOTHING * 250_000 + PNG[33:],
    "JPEG of markers": b"\xff\xd8" + b"\xff\xfe\0\x02" * 700_000,
    "JPEG of fill bytes": b"\xff\xd8" + b"\xff" * 3_000_000,
    "JPEG 2000 of boxes": encoded(Image.new("RGB", (9, 9)), "JPEG2000")[:12] + b"\0\0\0\x08free" * 250_000,
    "PPM of spaces": b"P6 " + b" " * 3_000_000,
    "PPM of a comment": b"P6 #" + b"x" * 3_000_000,
}


@pytest.mark.parametrize("name", ENDLESS_HEADERS)
def test_a_header_without_end_is_given_up_soon(name: str) -> None:
    start = time.thread_time()
    assert "header does not end" in str(refusal(ENDLESS_HEADERS[name]))
    assert time.thread_time() - start < 5  # takes a tenth of that, unless coverage counts every line


@pytest.mark.parametrize("blocks", [100_000, 4200])
def test_the_comments_of_a_gif_take_no_time_to_speak_of(blocks: int) -> None:
    """Pillow 12 and older take minutes for the longer ones, in which no other thread of Python runs."""
    comment = b"!\xfe" + (b"\xff" + b"x" * 255) * (blocks // 2) + b"\0"
    start = time.thread_time()
    assert "far longer comments than a picture needs" in str(refusal(GIF + comment + comment))
    assert time.thread_time() - start < 5


def test_a_gif_may_have_long_comments(photo: Image.Image) -> None:
    data = encoded(photo.convert("L"), "GIF")
    comment = b"!\xfe" + (b"\xff" + b"x" * 255) * 2000 + b"\0"
    assert np.array_equal(load_pixels(data[:781] + 2 * comment + data[781:]), load_pixels(data))


@pytest.mark.parametrize("where", ["among the pixels", "after the pixels"])
def test_chunks_without_end_are_given_up_soon_behind_the_first_pixels(where: str) -> None:
    idat = b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")
    chunks, at = (idat * 350_000, 33) if where == "among the pixels" else (NOTHING * 250_000, -12)
    start = time.thread_time()
    assert "far more chunks than a picture needs" in str(refusal(PNG[:at] + chunks + PNG[at:]))
    assert time.thread_time() - start < 5


def test_a_png_may_have_many_chunks() -> None:
    """Chunks of half a kilobyte; encoders write 8 kilobytes or more."""
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    whole = encoded(Image.fromarray(pixels), compress_level=0)
    data = b"".join(iter_idat(whole))
    parts = [data[start : start + 512] for start in range(0, len(data), 512)]
    chunks = [
        len(part).to_bytes(4, "big") + (b"IDAT" + part) + zlib.crc32(b"IDAT" + part).to_bytes(4, "big")
        for part in parts
    ]
    again = whole[:33] + b"".join(chunks) + whole[-12:]
    assert len(chunks) > 13_000
    assert np.array_equal(load_pixels(again), load_pixels(whole))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def long_metadata(kind: bytes) -> bytes:
    """A chunk that holds a byte more than Pillow takes."""
    start = b"XML:com.adobe.xmp\0\1\0\0\0" if kind == b"iTXt" else b"name\0\0"
    return png_chunk(kind, start + zlib.compress(b"x" * ((1 << 20) + 1)))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("at", [33, -12], ids=["before the pixels", "after the pixels"])
def test_a_png_may_have_more_metadata_than_pillow_takes(kind: bytes, at: int) -> None:
    data = PNG[:at] + long_metadata(kind) + PNG[at:]
    with pytest.raises(ValueError, match=r"(?i)decompressed data too large"):
        Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(load_pixels(data), load_pixels(PNG))


def test_a_png_may_have_much_text_in_many_chunks() -> None:
    chunk = png_chunk(b"zTXt", b"name\0\0" + zlib.compress(bytes(1 << 20)))
    np.testing.assert_array_equal(load_pixels(PNG[:33] + 65 * chunk + PNG[33:]), load_pixels(PNG))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_an_opened_png_with_more_metadata_than_pillow_takes_is_not_called_damaged(kind: bytes) -> None:
    error = refusal(Image.open(io.BytesIO(PNG[:-12] + long_metadata(kind) + PNG[-12:])))
    assert str(error).endswith(": has more metadata than Pillow's PNG decoder takes; save it without metadata")


def test_no_more_of_a_file_is_copied_than_photos_have(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy lacks what Pillow fails at."""
    jpeg, png = encoded(photo, "JPEG")[:-2], PNG[:33] + long_metadata(b"zTXt") + PNG[33:]
    load_pixels(jpeg), load_pixels(png)
    monkeypatch.setattr(image_file, "_LONGEST_COPY", len(jpeg) // 2)
    assert "truncated" in str(refusal(jpeg))
    monkeypatch.setattr(image_file, "_LONGEST_COPY", len(png))
    assert "more metadata than" in str(refusal(png))


def test_no_more_of_a_colour_profile_is_unpacked_than_printers_have() -> None:
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    tracemalloc.start()
    load_pixels(PNG[:33] + png_chunk(b"iCCP", b"name\0\0" + packed) + PNG[33:])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def iter_idat(png: bytes) -> Iterator[bytes]:
    at = 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] == b"IDAT":
            yield png[at + 8 : at + 8 + length]
        at += 12 + length


UNLIMITED = {  # beginnings after which Pillow would read any number of bytes into memory
    "WebP": lambda photo: encoded(photo, "WEBP"),
    "AVIF": lambda photo: encoded(photo, "AVIF"),
    "TIFF of LZW": lambda photo: encoded(photo, "TIFF", compression="tiff_lzw"),
    "chunk of a PNG": lambda photo: encoded(photo)[:33] + b"\x7f\xff\xff\xffabCd",
    "box of a JPEG 2000": lambda photo: encoded(photo, "JPEG2000")[:12] + b"\x7f\xff\xff\xffjp2h",
}


@pytest.mark.parametrize("name", UNLIMITED)
def test_a_file_longer_than_any_picture_within_the_limit_is_not_read(
    name: str, photo: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(UNLIMITED[name](photo))
    os.truncate(path, 2**26)
    tracemalloc.start()
    try:
        assert "longer than" in str(refusal(path, max_pixels=200 * 160))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@needs_sparse_files
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF"])
def test_what_follows_a_picture_is_not_read_and_does_no_harm(
    file_format: str, photo: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(alone := encoded(photo, file_format))
    os.truncate(path, 2**40)
    np.testing.assert_array_equal(load_pixels(path, max_pixels=200 * 160), load_pixels(alone))


def test_pixels_may_take_as_many_reads_and_bytes_as_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)))
    start, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    part = lambda byte: b"\0\0\0\1IDAT" + byte + zlib.crc32(b"IDAT" + byte).to_bytes(4, "big")  # noqa: E731
    parts = b"".join(part(data[at : at + 1]) for at in range(start + 8, end - 4))
    monkeypatch.setattr("caplet.image_file._MOST_READS", 1000)  # of which a chunk takes three
    again = data[:start] + NOTHING * 250 + parts + data[end:]
    np.testing.assert_array_equal(load_pixels(again), load_pixels(data))
    content = b"teSt" + bytes(700_000)  # of all bytes, a megabyte more than the pixels' may be read
    much = struct.pack(">I", 700_000) + content + struct.pack(">I", zlib.crc32(content))
    again = data[:start] + much + data[start:end] + much + data[end:]
    np.testing.assert_array_equal(load_pixels(again, max_pixels=81), load_pixels(data))


def progressive(width: int, height: int, scans: int) -> bytes:
    """A JPEG whose scans, except for the first, are empty: long runs of blocks without coefficients."""

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    def scan(first: int, last: int) -> bytes:
        return segment(0xDA, bytes([1, 1, 0, first, last, 0]))

    blocks = (width + 7) // 8 * ((height + 7) // 8)
    runs = ("0" + "1" * 14) * -(-blocks // 32767)
    runs += "1" * (-len(runs) % 8)
    nothing = int(runs, 2).to_bytes(len(runs) // 8, "big").replace(b"\xff", b"\xff\0")
    tables = segment(0xDB, bytes([0] + [16] * 64)) + segment(
        0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"
    )
    tables += segment(0xC4, b"\0\1" + bytes(15) + b"\0") + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    pixels = scan(0, 0) + bytes(-(-blocks // 8)) + (scan(1, 63) + nothing) * (scans - 1)
    return b"\xff\xd8" + tables + pixels + b"\xff\xd9"


def test_a_jpeg_of_countless_scans_is_given_up() -> None:
    assert load_pixels(progressive(800, 600, 200)).mean() == 128
    assert "far more scans" in str(refusal(progressive(800, 600, 201)))


def test_what_looks_like_scans_in_a_colour_profile_is_none() -> None:
    """As in profiles of printers, which take megabytes."""
    content = b"ICC_PROFILE\0\1\1" + b"\xff\xda" * 1000
    profile = struct.pack(">BBH", 0xFF, 0xE2, len(content) + 2) + content
    few, many = (progressive(800, 600, scans) for scans in (200, 201))
    assert load_pixels(few[:2] + profile + few[2:]).mean() == 128
    assert "far more scans" in str(refusal(many[:2] + profile + many[2:]))


@pytest.mark.parametrize("order", [b"II", b"MM"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("error::UserWarning")  # Pillow's, about the part cut off
def test_of_long_exif_only_the_orientation_is_read(
    form: str, order: bytes, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow before 13 copies each value, though all may be the same bytes: 440 KB took 4 GB."""
    exif = Image.Exif()
    exif.endian = "<" if order == b"II" else ">"
    exif[0x010F], exif[0x0110], exif[0x0112] = "the maker", "the model", 6
    long = exif.tobytes() + bytes(200_000)
    assert long[6:8] == order
    if form == "JPEG":
        whole = encoded(photo, form)
        parts = [long[6:][start : start + 60_000] for start in range(0, 200_000, 60_000)]
        segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)
        bare, data = whole, whole[:2] + segments + whole[20:]  # that of JFIF, for the resolution
    else:
        bare, data = encoded(photo, form), encoded(photo, form, exif=long)
    expected = load_pixels(Image.open(io.BytesIO(bare)).transpose(Image.Transpose.ROTATE_270))
    opened = Image.open(io.BytesIO(data))
    looked_at = lengths_of_exif(monkeypatch)
    np.testing.assert_array_equal(load_pixels(data), expected)
    assert max(looked_at, default=0) < 70_000
    np.testing.assert_array_equal(load_pixels(opened), expected)
    assert form == "JPEG" or not any(looked_at)


@pytest.mark.parametrize(
    "beginning",
    [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"MM\0*\0\0\0\x08\0\0", b"what is this"],
)
def test_long_exif_that_is_damaged_or_empty_spoils_no_picture(beginning: bytes, photo: Image.Image) -> None:
    data = encoded(photo, "PNG", exif=b"Exif\0\0" + beginning + bytes(100_000))
    np.testing.assert_array_equal(load_pixels(data), load_pixels(photo))


def test_long_exif_in_the_text_of_a_png_is_passed_over(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n  100000\n{bytes(100_000).hex()}", zip=True)
    looked_at = lengths_of_exif(monkeypatch)
    np.testing.assert_array_equal(load_pixels(encoded(photo, pnginfo=text)), load_pixels(photo))
    assert not any(looked_at)


def lengths_of_exif(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all EXIF data that Pillow is given to parse from now on."""
    lengths: list[int] = []
    load = Image.Exif.load

    def noted(exif: Image.Exif, data: bytes) -> None:
        lengths.append(len(data or b""))
        load(exif, data)

    monkeypatch.setattr(Image.Exif, "load", noted)
    return lengths


# -- variants without a decoder in C ----------------------------------------------------------------------------------


def rle_bmp(width: int, height: int, pixels: bytes) -> bytes:
    """A run-length encoded grey BMP of 8 bits. A run is a count and a value, or 0 and a command."""
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


IN_PYTHON = {
    "run-length encoded BMP": (rle_bmp(30, 20, b"\x1e\x50\0\0" * 20 + b"\0\1"), 80),
    "PPM whose numbers are text, P1": (b"P1 30 20 " + b"0" * 600, 255),
    "PPM whose numbers are text, P2": (b"P2 30 20 51 " + b"17 " * 600, 85),
    "PPM whose numbers are text, P3": (b"P3 30 20 255 " + b"9 " * 1800, 9),
}
"""A picture of each, and the grey it shows."""


@pytest.mark.parametrize("variant", IN_PYTHON)
def test_what_pillow_decodes_in_python_is_refused_unless_the_caller_opened_it(variant: str) -> None:
    data, grey = IN_PYTHON[variant]
    for allow_truncated in (False, True):
        message = str(refusal(data, allow_truncated=allow_truncated))
        assert message.startswith(f"<bytes>: is a {variant.split(',')[0]}, which caplet does not read; save it as")
        assert (load_pixels(Image.open(io.BytesIO(data)), allow_truncated=allow_truncated) == grey).all()


def test_a_run_length_encoded_bmp_takes_no_memory_however_large_it_says_it_is() -> None:
    bomb = rle_bmp(2_000_000, 1, b"\0\2\xff\xff\xff\xff\0\1")  # the command to go 255 to the right and 255 up
    refusal(rle_bmp(1, 1, b""))  # its plugin imported
    before = resident_memory()
    refusal(bomb)
    assert peak_memory() - before < 4 << 20


@pytest.mark.parametrize("maxval", [254, 1023])
def test_a_ppm_of_another_maxval_takes_no_seconds(maxval: int) -> None:
    samples = np.full(3 * 2000 * 2000, maxval, np.uint8 if maxval < 256 else ">u2")
    start = time.thread_time()
    assert (load_pixels(f"P6 2000 2000 {maxval}\n".encode() + samples.tobytes()) == 255).all()
    assert time.thread_time() - start < 2  # takes a tenth of that; Pillow's own decoder takes 20


def test_a_ppm_of_another_maxval_takes_no_more_memory_than_others() -> None:
    data = b"P6 6000000 2 1023\n" + bytes(
        6 * 12_000_000
    )  # converted in one piece, samples as indices would take 24 bytes each
    before = resident_memory()
    load_pixels(data)
    assert peak_memory() - before < 16 * 12_000_000


# -- truncated files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file_format", "options"), SEQUENTIAL + WHOLE, ids=str)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("pillow_is_lenient", [False, True])
def test_truncated_files_are_an_error(
    photo: Image.Image,
    file_format: str,
    options: dict[str, Any],
    share: float,
    pillow_is_lenient: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encoded(photo, file_format, **options)
    if pillow_is_lenient and file_format == "JPEG2000":
        pytest.skip("OpenJPEG reads past the end of whole files too, so caplet cannot tell")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", pillow_is_lenient)
    message = str(refusal(data[: int(share * len(data))]))
    assert "truncated" in message or "damaged" in message
    load_pixels(data)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "PPM"])
def test_the_message_names_file_cause_and_remedy(photo: Image.Image, file_format: str, tmp_path: Path) -> None:
    path = tmp_path / "half"
    data = encoded(photo, file_format)
    pixels = data.index(b"\xff\xda") if file_format == "JPEG" else 26
    for end in (26, pixels, len(data) // 2):  # in the header, at its end, and in the pixels
        path.write_bytes(data[:end])
        expected = f"{path}: the {file_format} file is truncated; get a complete copy, or allow truncated images"
        assert str(refusal(path)) == expected


@pytest.mark.parametrize(("file_format", "options"), SEQUENTIAL, ids=str)
def test_the_part_of_a_truncated_file_that_is_there_can_be_had(
    photo: Image.Image, file_format: str, options: dict[str, Any]
) -> None:
    whole = encoded(photo, file_format, **options)
    expected, part = load_pixels(whole).astype(int), load_pixels(whole[: int(0.6 * len(whole))], allow_truncated=True)
    difference = np.abs(part - expected)
    if "progressive" in options:
        assert difference.mean() < 8  # a progressive JPEG is there as a whole, a little blurred
    else:
        first = slice(160, None) if file_format == "BMP" else slice(0, 140)  # BMP is stored from the bottom up
        assert difference[first].mean() < 0.1
        assert difference.mean() > 5  # the rest is missing


@pytest.mark.parametrize(("file_format", "options"), SEQUENTIAL, ids=str)
def test_the_part_of_a_truncated_file_can_be_had_also_when_pillow_opened_it(
    photo: Image.Image, file_format: str, options: dict[str, Any]
) -> None:
    whole = encoded(photo, file_format, **options)
    data = whole[: 2 * len(whole) // 3]
    assert "truncated" in str(refusal(Image.open(io.BytesIO(data))))
    image = Image.open(io.BytesIO(data))
    expected = load_pixels(data, allow_truncated=True)
    np.testing.assert_array_equal(load_pixels(image, allow_truncated=True), expected)
    np.testing.assert_array_equal(load_pixels(image, allow_truncated=True), expected)  # it is left as it was
    whole_image = Image.open(io.BytesIO(whole))
    np.testing.assert_array_equal(load_pixels(whole_image, allow_truncated=True), load_pixels(whole))


def test_of_a_png_whose_pixels_end_before_its_last_chunk_too(photo: Image.Image) -> None:
    whole = encoded(photo)
    pixels = b"".join(iter_idat(whole))
    part = b"IDAT" + pixels[: len(pixels) // 2]
    data = whole[:33] + struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    assert "truncated" in str(refusal(data + whole[-12:]))
    expected = load_pixels(data, allow_truncated=True)
    np.testing.assert_array_equal(load_pixels(data + whole[-12:], allow_truncated=True), expected)


@pytest.mark.parametrize(("maxval", "more"), [(254, 0), (1023, 1), (1023, 5)])
def test_of_a_truncated_ppm_of_another_maxval_too(photo: Image.Image, maxval: int, more: int) -> None:
    pixels = np.asarray(photo)
    samples = np.rint(pixels / 255 * maxval).astype(np.uint8 if maxval < 256 else ">u2")
    header = f"P6 200 160 {maxval}\n".encode()
    data = (header + samples.tobytes())[: len(header) + 100 * samples[0].nbytes + more]  # to the middle of a sample
    assert "truncated" in str(refusal(data))
    part = load_pixels(data, allow_truncated=True, size=(200, 160))
    assert np.abs(part[:100].astype(int) - pixels[:100]).max() <= 1
    assert part[100, 1:].max() == part[101:].max() == 0
    np.testing.assert_array_equal(
        load_pixels(Image.open(io.BytesIO(data)), allow_truncated=True, size=(200, 160)), part
    )
    assert "nothing of the picture can be recovered" in str(refusal(header, allow_truncated=True))


def test_the_salvaged_part_is_what_pillow_gives(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, {"progressive": True}):
        data = encoded(photo, "JPEG", **options)
        data = data[: int(0.6 * len(data))]
        ours = load_pixels(data, allow_truncated=True)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
            theirs = np.asarray(Image.open(io.BytesIO(data)).resize((299, 299), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("file_format", "options"), SEQUENTIAL + WHOLE, ids=str)
def test_a_file_without_any_pixels_is_an_error_even_then(
    photo: Image.Image, file_format: str, options: dict[str, Any]
) -> None:
    data = encoded(photo, file_format, **options)
    header = data.index(b"\xff\xda") if file_format == "JPEG" else 60
    refusal(data[:header], allow_truncated=True)


@pytest.mark.parametrize(("file_format", "options"), SEQUENTIAL + WHOLE, ids=str)
def test_whole_files_are_the_same_whether_truncation_is_allowed_or_not(
    photo: Image.Image, file_format: str, options: dict[str, Any]
) -> None:
    data = encoded(photo, file_format, **options)
    np.testing.assert_array_equal(load_pixels(data, allow_truncated=True), load_pixels(data))


TRAILERS = {
    "nothing": b"",
    "a trailer": bytes(40) + b"SEFT",
    "a film": np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes(),
    "a start": b"\xff\xd8\xff\xe0" + bytes(100),
    "a frame": bytes(40) + b"\xff\xc0\0\x11\x08" + bytes(100),
    "an unknown marker": b"\xff\x5c" + bytes(100),
}
"""What follows the pixels of a JPEG whose end marker was left out. A film is in Samsung's panoramas."""


@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize("size", [(640, 200), (3000, 1300)], ids=["small", "decoded at a part of its size"])
@pytest.mark.parametrize("opened", [False, True], ids=["bytes", "PIL"])
def test_a_jpeg_may_lack_its_end_marker(photo: Image.Image, trailer: str, size: tuple[int, int], opened: bool) -> None:
    whole = encoded(photo.resize(size), "JPEG", quality=90, restart_marker_blocks=9)  # markers that end nothing
    data = whole.removesuffix(b"\xff\xd9") + TRAILERS[trailer]
    pixels = load_pixels(Image.open(io.BytesIO(data)) if opened else data)
    np.testing.assert_array_equal(pixels, load_pixels(whole))


@pytest.mark.parametrize("trailer", ["a start", "a frame", "an unknown marker"])
def test_a_jpeg_that_lacks_pixels_before_such_a_trailer_is_truncated(photo: Image.Image, trailer: str) -> None:
    whole = encoded(photo.resize((640, 200)), "JPEG", quality=90)
    data = whole[: len(whole) // 2] + TRAILERS[trailer]
    assert "the JPEG file is truncated" in str(refusal(data))
    there, expected = load_pixels(data, allow_truncated=True), load_pixels(whole)
    np.testing.assert_array_equal(there[:120], expected[:120])


def jpeg_of_three_scans(photo: Image.Image) -> bytes:
    """A sequential JPEG, each of whose colours has a scan of its own: three grey JPEGs joined."""
    parts = []
    for plane in photo.convert("YCbCr").split():
        grey = encoded(plane, "JPEG", quality=90)
        frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
        tables, pixels = grey[:frame] + grey[frame + 13 : scan], grey[scan + 10 : -2]
        parts.append(b"\xff\xda\0\x08\1" + bytes((len(parts) + 1,)) + b"\0\0\x3f\0" + pixels)
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    header = b"\xff\xc0\0\x11\x08" + struct.pack(">HHB", photo.height, photo.width, 3) + components
    return tables + header + b"".join(parts) + b"\xff\xd9"


def test_a_jpeg_of_several_scans_without_its_end_marker_may_lack_one(photo: Image.Image) -> None:
    whole = jpeg_of_three_scans(photo)
    load_pixels(whole)
    progressive = encoded(photo, "JPEG", progressive=True)
    for data in (whole[:-2], whole[: whole.rindex(b"\xff\xda")], progressive[:-2]):
        assert "the JPEG file is truncated" in str(refusal(data))


# -- threads ----------------------------------------------------------------------------------------------------------


def test_leniency_belongs_to_the_call_and_not_to_the_process(photo: Image.Image) -> None:
    data = encoded(photo, "JPEG")
    data = data[: len(data) // 2]
    expected = load_pixels(data, allow_truncated=True)
    barrier = threading.Barrier(8)
    switches = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters)

    def outcome(allow_truncated: bool) -> bool:
        """Whether 25 calls all do as they were told, while other threads ask for the opposite."""
        barrier.wait()
        for _ in range(25):
            try:
                pixels = load_pixels(data, allow_truncated=allow_truncated)
            except CapletError:
                if allow_truncated:
                    return False
            else:
                if not allow_truncated or not np.array_equal(pixels, expected):
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(outcome, [True, False] * 4))
    assert switches == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_another_thread_decodes_leaves_no_lock_behind() -> None:
    with image_module._decoding:  # as the other thread holds it at the fork
        child = os.fork()
        if child == 0:
            # Nothing may leave this block: the child is a copy of the whole test run.
            try:
                signal.alarm(20)  # ends the child if it waits for the thread that it does not have
                load_pixels(Image.new("RGB", (8, 8)))
                os._exit(7)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("decoded", [False, True])
def test_threads_share_one_image_that_pillow_has_opened(file_format: str, decoded: bool, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo.resize((800, 600)), file_format, exif=exif)
    expected = load_pixels(data)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            image = Image.open(io.BytesIO(data))
            if decoded:
                image.load()
            assert all(np.array_equal(pixels, expected) for pixels in pool.map(load_pixels, [image] * 8))


def test_threads_share_one_array_and_one_loaded_image(photo: Image.Image) -> None:
    with ThreadPoolExecutor(8) as pool:
        for source in (photo, np.asarray(photo), PHOTO.read_bytes(), PHOTO):
            expected = load_pixels(source)
            assert all(np.array_equal(pixels, expected) for pixels in pool.map(load_pixels, [source] * 40))
