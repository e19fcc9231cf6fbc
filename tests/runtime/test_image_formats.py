"""Orientation, modes, transparency, colour profiles, reduced JPEG decoding, each against an independent reference."""

from __future__ import annotations

import functools
import io
import itertools
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, features
from PIL.PngImagePlugin import PngImageFile
from skimage import color as skimage_color

import caplet.image
from caplet.image import load_picture, load_pixels
from caplet.image_file import decode_file
from pictures import encoded, plain, refusal

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))
ORIENTATION = 0x0112


def mean_difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(int) - other).mean())


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(PHOTOS[0]).convert("RGB").resize((90, 60))


# -- orientation ------------------------------------------------------------------------------------------------------

# Where row 0 and column 0 of the stored picture are seen according to CIPA DC-008, written as what a camera does to an
# upright picture to store it with that orientation.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}
LOSSLESS = ["PNG", "WEBP", "TIFF", "PIL"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("door", LOSSLESS)
def test_the_eight_orientations_give_one_picture(photo: Image.Image, orientation: int, door: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(photo))))
    if door == "PIL":
        source: Any = Image.open(io.BytesIO(encoded(stored, "PNG", exif=exif)))
    else:
        options = {"lossless": True} if door == "WEBP" else {}
        source = encoded(stored, door, exif=exif, **options)
    np.testing.assert_array_equal(load_pixels(source), plain(photo))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(120, 80), (2600, 1800)], ids=["small", "reduced"])
def test_jpeg_orientation_agrees_with_pillow(orientation: int, shape: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(Image.open(PHOTOS[0]).resize(shape), "JPEG", exif=exif, quality=95)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    for source in (data, io.BytesIO(data), Image.open(io.BytesIO(data))):
        assert mean_difference(load_pixels(source), plain(reference)) < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])  # of uncompressed TIFFs with paths, Pillow maps the latter into memory
@pytest.mark.parametrize("allow_truncated", [False, True])
def test_a_tiff_that_pillow_opened_is_turned_once(
    photo: Image.Image, orientation: int, mode: str, allow_truncated: bool, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    upright = photo.convert(mode)
    path = tmp_path / "photo.tif"
    path.write_bytes(
        encoded(Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(upright)))), "TIFF", exif=exif)
    )
    with Image.open(path) as opened:
        for source in (path, opened):
            np.testing.assert_array_equal(load_pixels(source, allow_truncated=allow_truncated), plain(upright))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    np.testing.assert_array_equal(load_pixels(encoded(photo, exif=exif)), plain(photo))


@settings(max_examples=50, deadline=None)
@given(exif=st.binary(max_size=80))
def test_damaged_exif_spoils_no_picture(exif: bytes) -> None:
    picture = Image.new("RGB", (4, 4), (10, 20, 30))
    pixels = load_pixels(encoded(picture, "JPEG", exif=b"Exif\0\0" + exif, quality=100))
    assert mean_difference(pixels, plain(picture)) <= 2


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("tag", [34665, 34853])  # of EXIF and GPS
@pytest.mark.parametrize("offset", [8, 100_000])
def test_a_tiff_may_say_where_exif_was_in_the_file_that_it_was_made_of(tag: int, offset: int, compression: int) -> None:
    """As Pillow's own `picture.save(path, tiffinfo=other.tag_v2)` writes it."""
    picture = np.random.default_rng(offset).integers(0, 256, (20, 30, 3), np.uint8)
    strip = picture.tobytes() if compression == 1 else zlib.compress(picture.tobytes())
    layout = {"t256": 30, "t257": 20, "t258": 8, "t259": compression, "t262": 2, "t274": 6, "t277": 3, "t278": 20}
    data = tiff("<", [strip], **layout, **{f"t{tag}": offset})
    upright = Image.fromarray(picture).transpose(Image.Transpose.ROTATE_270)
    for source in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(load_pixels(source), plain(upright))


@pytest.mark.parametrize("value", ["upside down", (6, 8), b"\6", None])
def test_an_orientation_that_is_not_a_number_is_upright(photo: Image.Image, value: Any) -> None:
    image = photo.copy()
    image.getexif()[ORIENTATION] = value
    np.testing.assert_array_equal(load_pixels(image), plain(photo))


# -- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes_equal_pillows_conversion(photo: Image.Image, mode: str) -> None:
    image = photo.convert(mode)
    np.testing.assert_array_equal(load_pixels(image), plain(image))


@pytest.mark.parametrize(
    ("file_format", "mode", "options"),
    [
        ("PNG", "1", {}),
        ("PNG", "P", {}),
        ("GIF", "P", {}),
        ("GIF", "L", {}),
        ("BMP", "1", {}),
        ("BMP", "P", {}),
        ("BMP", "RGB", {}),
        ("PPM", "1", {}),
        ("PPM", "L", {}),
        ("PPM", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG2000", "RGB", {}),
        ("JPEG2000", "L", {}),
        ("JPEG2000", "RGBA", {}),
        ("MPO", "RGB", {}),
        ("TIFF", "1", {"compression": "group4"}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "YCbCr", {"compression": "jpeg"}),
        ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", "RGB", {"big_tiff": True}),
        ("WEBP", "RGB", {"quality": 80}),
        ("AVIF", "RGB", {}),
    ],
)
def test_every_format_on_the_list_decodes_as_pillow_does(
    photo: Image.Image, file_format: str, mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    data = encoded(photo.convert(mode), file_format, **options)
    expected = plain(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(load_pixels(data), expected)
    path = tmp_path / "no-suffix"
    path.write_bytes(data)
    np.testing.assert_array_equal(load_pixels(path), expected)


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    sixteen = eight.astype(np.uint16) * 257
    expected = load_pixels(eight)
    for image in (
        Image.fromarray(sixteen),
        Image.fromarray(sixteen.astype(">u2")),
        Image.fromarray(sixteen.astype("i4")),
    ):
        np.testing.assert_array_equal(load_pixels(image), expected, err_msg=image.mode)
    for file_format in ("PNG", "TIFF", "PPM"):
        np.testing.assert_array_equal(load_pixels(encoded(Image.fromarray(sixteen), file_format)), expected)


def ppm(kind: str, maxval: int, samples: NDArray[Any]) -> bytes:
    header = f"{kind} {samples.shape[1]} {samples.shape[0]} {maxval}\n".encode()
    return header + samples.astype(np.uint8 if maxval < 256 else ">u2").tobytes()


@pytest.mark.parametrize("maxval", [1, 2, 3, 100, 254, 256, 257, 1000, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize(("kind", "mode"), [("P5", "L"), ("P6", "RGB")])
def test_ppms_of_any_maxval_decode_as_pillow_does_it_sample_by_sample(kind: str, mode: str, maxval: int) -> None:
    """Also for samples above their maxval, which are not allowed."""
    samples = np.random.default_rng(maxval).integers(0, maxval + 1, (30, 40, len(mode)))
    samples[-1, :, :] = 255 if maxval < 256 else 65535
    data = ppm(kind, maxval, samples)
    opened = Image.open(io.BytesIO(data))
    decoded, _ = decode_file(io.BytesIO(data), "photo", least_side=1, max_pixels=1200, allow_truncated=False)
    assert decoded.mode == opened.mode == ("I" if kind == "P5" and maxval > 255 else mode)
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(opened))


def test_every_sample_of_a_ppm_is_rounded_as_pillow_rounds_it() -> None:
    for maxval in (*range(1, 256), 1023, 65534):
        samples = np.arange(maxval + 1).reshape(-1, 1)
        data = ppm("P5", maxval, samples)
        white = 255 if maxval < 256 else 65535
        decoded, _ = decode_file(io.BytesIO(data), "photo", least_side=1, max_pixels=2**20, allow_truncated=False)
        assert np.asarray(decoded)[:, 0].tolist() == [round(value / maxval * white) for value in range(maxval + 1)]


@pytest.mark.parametrize(
    ("signature", "order", "options"),
    [(b"II*\0", "<u2", {}), (b"MM\0*", ">u2", {}), (b"II+\0", "<u2", {"big_tiff": True})],
)
def test_tiffs_of_either_byte_order_are_known(signature: bytes, order: str, options: dict[str, Any]) -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = encoded(Image.fromarray((eight * np.uint16(257)).astype(order)), "TIFF", **options)
    assert data.startswith(signature)
    np.testing.assert_array_equal(load_pixels(data), load_pixels(eight))


def grey_tiff(grey: NDArray[np.uint8], bits: int, kind: int, photometric: int) -> bytes:
    """A TIFF of one strip (TIFF 6.0), as scanners write them; of kind 1 (integers) or 3 (floats)."""
    height, width = grey.shape
    light = grey / 255 if photometric else 1 - grey / 255
    if kind == 3:
        strip = light.astype("<f4").tobytes()
    elif bits == 12:
        digits = [f"{sample:03x}" for sample in np.rint(light * 4095).astype(int).flat]
        strip = bytes.fromhex("".join(digits))
    else:
        strip = np.rint(light * (2**bits - 1)).astype(f"<u{bits // 8}").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height, 279: len(strip)}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 339: kind}  # the strip starts behind ten tags
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + strip


@pytest.mark.parametrize(
    ("bits", "kind", "photometric"), [(8, 1, 0), (8, 1, 1), (12, 1, 1), (16, 1, 0), (16, 1, 1), (32, 3, 0), (32, 3, 1)]
)
def test_a_tiff_says_what_white_is(bits: int, kind: int, photometric: int) -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for image in (eight, eight // 32):  # also a dark one
        data = grey_tiff(image, bits, kind, photometric)
        expected = load_pixels(image).astype(int)
        for source in (data, Image.open(io.BytesIO(data))):
            assert abs(load_pixels(source) - expected).max() <= 1


def tiff(order: str, strips: list[bytes], **tags: int) -> bytes:
    """A TIFF (TIFF 6.0) of the tags `t256` and so on, all of them LONG, whose strips are the planes of the picture."""
    values = {int(name[1:]): [value] for name, value in tags.items()}
    start = 8 + 2 + 12 * (len(values) + 2) + 4
    places = np.cumsum([start, *map(len, strips)]).tolist()
    end, count = places.pop(), len(strips)
    values[273], values[279] = (places, list(map(len, strips))) if count == 1 else ([end], [end + 4 * count])
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, count if tag in (273, 279) else 1, *value)
        for tag, value in sorted(values.items())
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(values)) + entries + bytes(4)
    return head + b"".join(strips) + struct.pack(f"{order}{2 * count}I", *places, *map(len, strips))


@pytest.mark.parametrize("factor", [1, 256, 257])
def test_the_palette_of_a_tiff_may_have_8_bits_where_16_belong(photo: Image.Image, factor: int) -> None:
    indexed = photo.quantize(256)
    colours = np.reshape(indexed.getpalette(), (-1, 3)).T.flatten() * factor
    data = encoded(indexed, "TIFF")
    written = Image.open(io.BytesIO(data)).tag_v2[320]
    data = data.replace(struct.pack("<768H", *written), struct.pack("<768H", *colours))
    for source in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(load_pixels(source), plain(indexed))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_16_bits_may_keep_each_colour_in_a_plane_of_its_own(photo: Image.Image, order: str) -> None:
    planes = [(plane * np.uint16(257)).astype(f"{order}u2").tobytes() for plane in np.asarray(photo).transpose(2, 0, 1)]
    data = tiff(order, planes, t256=90, t257=60, t258=16, t259=1, t262=2, t277=3, t278=60, t284=2)
    for source in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(load_pixels(source), plain(photo))


def test_a_tiff_of_16_bit_inks_in_planes_is_not_read_as_one_of_8(photo: Image.Image) -> None:
    """Pillow takes each byte for a sample, which gives stripes, and has no reader of such planes."""
    planes = [(plane * np.uint16(257)).tobytes() for plane in np.asarray(photo.convert("CMYK")).transpose(2, 0, 1)]
    data = tiff("<", planes, t256=90, t257=60, t258=16, t259=1, t262=5, t277=4, t278=60, t284=2)
    assert "is a kind of TIFF" in str(refusal(data))


def test_an_uncompressed_tiff_of_luma_and_chroma_has_its_colours(photo: Image.Image) -> None:
    """Pillow before 13 takes it for RGB of four bytes a pixel: it reads on into the next page, or misses some."""
    luma_and_chroma = photo.convert("YCbCr")
    tags = {"t256": 90, "t257": 60, "t258": 8, "t259": 1, "t262": 6, "t277": 3, "t278": 60}
    for page in (b"", bytes(90 * 60)):
        data = tiff("<", [luma_and_chroma.tobytes()], **tags) + page
        for source in (data, Image.open(io.BytesIO(data))):
            np.testing.assert_array_equal(load_pixels(source), plain(luma_and_chroma))


@pytest.mark.parametrize(("dtype", "kind"), [("f4", 3), ("i2", 2), ("i4", 2)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_compressed_tiff_may_have_either_byte_order(dtype: str, kind: int, order: str) -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    strip = zlib.compress(eight.astype(order + dtype).tobytes())
    bits = 8 * int(dtype[1])
    data = tiff(order, [strip], t256=16, t257=16, t258=bits, t259=8, t262=1, t277=1, t278=16, t339=kind)
    for source in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(load_pixels(source), load_pixels(eight))


@pytest.mark.parametrize(("kind", "black"), [({}, 0), ({"t339": 1}, 0), ({"t339": 2}, -(2**31))])
def test_grey_of_32_bits_has_no_sign_unless_the_tiff_says_so(kind: dict[str, int], black: int) -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    strip = (eight * np.int64(0x1010101) + black).astype("<i8").view("<u4")[:, ::2].tobytes()
    data = tiff("<", [strip], t256=16, t257=16, t258=32, t259=1, t262=1, t277=1, t278=16, **kind)
    for source in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(load_pixels(source), load_pixels(eight))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_grey_converted_to_16_bits_by_pillow_which_does_not_scale_is_still_the_same(
    photo: Image.Image, mode: str
) -> None:
    grey = photo.convert("L")
    np.testing.assert_array_equal(load_pixels(grey.convert(mode)), load_pixels(grey))


@pytest.mark.parametrize("scale", [1 / 255, 1.0, 257.0, 1e6])
@pytest.mark.parametrize("shift", [0, -1])
def test_float_samples_of_any_usual_range_are_the_same_picture(scale: float, shift: int) -> None:
    ramp = np.arange(256, dtype=np.float32).reshape(16, 16)
    image = Image.fromarray(((ramp + shift * 128) * np.float32(scale)).astype(np.float32))
    assert image.mode == "F"
    np.testing.assert_array_equal(load_pixels(image), load_pixels(ramp.astype(np.uint8)))


def test_float_samples_that_are_not_numbers_are_black() -> None:
    samples = np.array([[np.nan, 1.0], [np.inf, 0.5]], np.float32)
    np.testing.assert_array_equal(
        load_pixels(Image.fromarray(samples), size=(2, 2))[..., 0], [[0, 255], [0, round(255 / 2)]]
    )
    assert load_pixels(Image.new("F", (3, 3), -7.0)).max() == 0
    assert load_pixels(Image.new("I", (3, 3), 1 << 30)).max() == 0
    largest = float(np.finfo(np.float32).max)
    np.testing.assert_array_equal(
        load_pixels(Image.fromarray(np.array([[-largest, largest]], np.float32)), size=(2, 1))[..., 0], [[0, 255]]
    )


def test_lab_is_converted_as_colour_science_says(photo: Image.Image) -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(photo, *profiles, outputMode="LAB")
    assert lab is not None
    assert mean_difference(load_pixels(lab), plain(photo)) < 2
    assert mean_difference(load_pixels(encoded(lab, "TIFF")), plain(photo)) < 2
    # Lab is relative to its white, so white maps to white whatever the illuminant is called.
    samples = np.asarray(lab)
    values = np.stack(
        [samples[..., 0] / 255 * 100, samples[..., 1].astype(np.int8), samples[..., 2].astype(np.int8)], axis=-1
    )
    reference = (skimage_color.lab2rgb(values, illuminant="D65") * 255).round().astype(np.uint8)
    assert mean_difference(load_pixels(lab), plain(Image.fromarray(reference))) < 4


@pytest.mark.parametrize("greys", [(0, 255), (255, 0), tuple(range(16)), tuple(range(0, 256, 17))], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("header", [12, 40])
def test_a_bmp_may_have_fewer_greys_than_its_bits_can_tell(greys: tuple[int, ...], bits: int, header: int) -> None:
    indices = np.random.default_rng(0).integers(0, len(greys), (6, 8), np.uint8)
    if header == 12:  # of OS/2, whose palettes are full
        palette = b"".join(bytes([grey] * 3) for grey in greys).ljust(3 << bits, b"\0")
        start = struct.pack("<IHHHH", 12, 8, 6, 1, bits)
    else:
        palette = b"".join(bytes([grey] * 3 + [0]) for grey in greys)
        start = struct.pack("<IiiHHIIiiII", 40, 8, 6, 1, bits, 0, 0, 0, 0, len(greys), 0)
    rows = indices[::-1] if bits == 8 else indices[::-1, ::2] << 4 | indices[::-1, 1::2]
    place = 14 + header + len(palette)
    data = b"BM" + struct.pack("<IHHI", place + rows.size, 0, 0, place) + start + palette + rows.tobytes()
    for source in (data, Image.open(io.BytesIO(data))):
        pixels = load_pixels(source, size=(8, 6))
        np.testing.assert_array_equal(pixels, np.array(greys, np.uint8)[indices][..., None].repeat(3, axis=2))


def test_animations_give_their_first_frame(photo: Image.Image) -> None:
    frames = [photo, ImageOps.invert(photo), ImageOps.mirror(photo)]
    for file_format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("GIF", {}), ("MPO", {})):
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        expected = plain(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(load_pixels(data), expected, err_msg=file_format)
        assert mean_difference(expected, plain(photo)) < 12


# -- transparency -----------------------------------------------------------------------------------------------------


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return np.asarray((rgba[..., :3] * alpha + 255 * (1 - alpha)).round(), np.uint8)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_alpha_is_composited_over_white(seed: int) -> None:
    rgba = np.random.default_rng(seed).integers(0, 256, (7, 9, 4), np.uint8)
    pixels = load_pixels(rgba, size=(9, 7))
    assert np.abs(pixels.astype(int) - over_white(rgba)).max() <= 1
    np.testing.assert_array_equal(load_pixels(encoded(Image.fromarray(rgba)), size=(9, 7)), pixels)


def test_every_kind_of_transparency_shows_white(photo: Image.Image) -> None:
    white = [255, 255, 255]
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    for mode in ("RGBA", "LA", "PA", "RGBa"):
        assert load_pixels(clear.convert(mode))[0, 0].tolist() == white, mode
    assert load_pixels(clear.convert("LA").convert("La"))[0, 0].tolist() == white
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette([200, 0, 0] * 256)
    for transparency in (3, bytes([255, 255, 255, 0])):
        for file_format in ("PNG", "GIF") if isinstance(transparency, int) else ("PNG",):
            data = encoded(palette, file_format, transparency=transparency)
            assert load_pixels(data)[0, 0].tolist() == white, file_format
    for mode, colour in (("RGB", (200, 0, 0)), ("L", 77), ("1", 0)):
        data = encoded(Image.new(mode, (4, 4), colour), transparency=colour)
        assert load_pixels(data)[0, 0].tolist() == white, mode


def test_a_palette_with_alpha_shows_white() -> None:
    half = np.zeros((4, 4, 4), np.uint8)
    half[:2] = 0, 0, 200, 255
    quantized = Image.fromarray(half).quantize(4)
    assert (quantized.mode, quantized.palette.mode) == ("P", "RGBA")  # and no transparency in its info
    assert load_pixels(quantized, size=(4, 4))[:, 0].tolist() == [[0, 0, 200]] * 2 + [[255] * 3] * 2


def test_transparency_that_pillow_leaves_on_another_mode_hides_nothing(photo: Image.Image) -> None:
    palette = Image.open(io.BytesIO(encoded(photo.quantize(8), transparency=bytes([0, 128, 255, 0, 3, 4, 5, 6]))))
    colour = Image.open(io.BytesIO(encoded(photo, transparency=(1, 2, 3))))
    for image in (palette.convert("1"), palette.convert("1").convert("L"), colour.quantize(8)):
        key = image.info["transparency"]
        bare = image.copy()
        del bare.info["transparency"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(load_pixels(image), load_pixels(bare))
        assert image.info["transparency"] is key  # it is left as it was


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(("colour_type", "clear", "seen"), [(0, ">H", [0x56] * 3), (2, ">3H", [0x56, 0x20, 0x30])])
def test_the_transparent_colour_of_a_16_bit_png_shows_white(colour_type: int, clear: str, seen: list[int]) -> None:
    samples = 1 if colour_type == 0 else 3
    hidden, shown = ([first, 0x2011, 0x3022][:samples] for first in (0x1234, 0x5678))
    row = b"\0" + struct.pack(f">{4 * samples}H", *(hidden * 2 + shown * 2))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0))
    key = chunk(b"tRNS", struct.pack(clear, *hidden))
    data = b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    opened = Image.open(io.BytesIO(data))
    for source in (data, opened):
        assert load_pixels(source, size=(4, 4))[0].tolist() == [[255] * 3] * 2 + [seen] * 2
    assert opened.info["transparency"] == (hidden[0] if samples == 1 else tuple(hidden))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_every_grey_of_a_png_may_be_the_transparent_one_or_none(bits: int) -> None:
    white = 2**bits - 1
    row = np.arange(white + 1)
    stored = np.packbits((row[:, None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", len(row), 1, bits, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + stored)) + chunk(b"IEND", b"")
    for key in (None, *range(0, white + 1, max(white // 15, 1))):
        transparent = b"" if key is None else chunk(b"tRNS", struct.pack(">H", key))
        data = b"\x89PNG\r\n\x1a\n" + header + transparent + pixels
        seen = load_pixels(data, size=(len(row), 1))[0, :, 0]
        np.testing.assert_array_equal(seen, np.where(row == key, 255, row * 255 // white))


@pytest.mark.parametrize("options", [{}, {"transparency": 255}, {"transparency": 0}], ids=["opaque", "none", "some"])
def test_around_the_first_frame_of_a_gif_is_white(photo: Image.Image, options: dict[str, Any]) -> None:
    frame = photo.quantize(200)
    data = bytearray(encoded(frame, "GIF", **options))
    rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert (rgba[..., 3].min() == 0) == (options.get("transparency") == 0)
    shown = np.where(rgba[..., 3:] == 0, 255, rgba[..., :3])
    data[6:10] = struct.pack("<2H", 120, 90)  # a larger screen, on which the frame is put at 20, 10
    place = data.index(b",\0\0\0\0" + struct.pack("<2H", *frame.size)) + 1
    data[place : place + 4] = struct.pack("<2H", 20, 10)
    expected = np.full((90, 120, 3), 255, np.uint8)
    expected[10:70, 20:110] = shown
    for source in (bytes(data), Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(load_pixels(source, size=(120, 90)), expected)


def bmp_with_alpha(rgba: NDArray[np.uint8]) -> bytes:
    """A BMP whose header (BITMAPV4HEADER) has a mask for alpha."""
    height, width = rgba.shape[:2]
    masks = struct.pack("<4I", 0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, -height, 1, 32, 3, rgba.size, 0, 0, 0, 0) + masks + bytes(52)
    return b"BM" + struct.pack("<IHHI", 14 + 108 + rgba.size, 0, 0, 14 + 108) + header + rgba.tobytes()


def test_a_bmp_whose_alpha_is_0_everywhere_is_opaque_as_in_browsers(photo: Image.Image) -> None:
    rgba = np.asarray(photo.convert("RGBA")).copy()
    rgba[..., 3] = 0
    for opaque in (bmp_with_alpha(rgba), Image.open(io.BytesIO(bmp_with_alpha(rgba)))):
        np.testing.assert_array_equal(load_pixels(opaque), plain(photo))
    rgba[0, 0, 3] = 1
    for clear in (bmp_with_alpha(rgba), Image.open(io.BytesIO(bmp_with_alpha(rgba)))):
        assert load_pixels(clear).min() > 250
    rgba[0, 0, 3] = 0
    assert load_pixels(encoded(Image.fromarray(rgba))).min() == 255  # a PNG means it


def test_transparency_that_hides_nothing_changes_nothing(photo: Image.Image) -> None:
    np.testing.assert_array_equal(load_pixels(photo.convert("RGBA")), plain(photo))
    np.testing.assert_array_equal(load_pixels(np.asarray(photo.convert("RGBA"))), plain(photo))


# -- colour profiles --------------------------------------------------------------------------------------------------


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile(name: str = "test built-in") -> bytes:
    """sRGB under another name, with red and green primaries exchanged in the tag table."""
    profile = bytearray(srgb_profile().replace("sRGB built-in".encode("utf-16-be"), name.encode("utf-16-be")))
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("name", ["sRGB", "c2  "])
def test_srgb_photos_keep_their_pixels_whatever_the_profile_is_called(photo: Image.Image, name: str) -> None:
    profile = srgb_profile().replace("sRGB".encode("utf-16-be"), name.encode("utf-16-be"))
    for file_format in ("PNG", "JPEG", "TIFF"):
        data = encoded(photo, file_format, icc_profile=profile)
        assert Image.open(io.BytesIO(data)).info["icc_profile"] == profile
        np.testing.assert_array_equal(load_pixels(data), plain(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("name", ["test built-in", "P3 sRGB curve", "sRGB-elle-g10"])
def test_photos_in_another_colour_space_are_brought_to_srgb(photo: Image.Image, name: str) -> None:
    r, g, b = photo.split()
    data = encoded(Image.merge("RGB", (g, r, b)), icc_profile=swapped_profile(name))
    assert name.encode("utf-16-be") in Image.open(io.BytesIO(data)).info["icc_profile"]
    assert mean_difference(load_pixels(data), plain(photo)) < 1.5
    assert mean_difference(plain(Image.open(io.BytesIO(data))), plain(photo)) > 5


def with_chunks(data: bytes, **chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    more = (chunk(kind.encode(), content) for kind, content in chunks.items())
    return data[:33] + b"".join(more) + data[33:]


@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8, 0.3])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_png_without_a_profile_may_have_a_gamma(photo: Image.Image, gamma: float, mode: str) -> None:
    samples = photo.convert(mode)
    data, gama = encoded(samples), struct.pack(">I", round(gamma * 100_000))
    light = (np.asarray(samples.convert("RGB")) / 255) ** (1 / gamma)
    expected = skimage_color.xyz2rgb(light @ skimage_color.colorconv.xyz_from_rgb.T) * 255  # sRGB of linear light
    for source in (with_chunks(data, gAMA=gama), Image.open(io.BytesIO(with_chunks(data, gAMA=gama)))):
        assert np.abs(load_pixels(source, size=samples.size) - expected).max() <= 1
    unchanged = load_pixels(data)
    for chunks in ({"gAMA": struct.pack(">I", 45455)}, {"gAMA": gama, "sRGB": b"\0"}, {"gAMA": bytes(4)}):
        np.testing.assert_array_equal(load_pixels(with_chunks(data, **chunks)), unchanged)


def orientation_chunk(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("kind", ["tEXt", "pHYs", "gAMA", "iCCP", "tRNS", "sRGB", "eXIf"])
def test_a_chunk_of_a_png_with_a_wrong_checksum_is_left_aside(photo: Image.Image, kind: str) -> None:
    """By browsers as well: the picture needs none whose name starts with a small letter."""
    content = {
        "pHYs": bytes(9),
        "gAMA": struct.pack(">I", 100_000),
        "iCCP": b"name\0\0" + zlib.compress(swapped_profile()),
        "tRNS": struct.pack(">3H", *photo.convert("RGB").getpixel((0, 0))),
        "sRGB": b"\0",
        "eXIf": orientation_chunk(3),
    }.get(kind, b"a\0b")
    whole = encoded(photo)
    if kind != "eXIf":  # what has the right one is read
        whole = with_chunks(whole, eXIf=orientation_chunk(6))
    wrong = bytearray(chunk(kind.encode(), content))
    wrong[-1] ^= 1
    with pytest.raises(SyntaxError, match="bad header checksum"):
        PngImageFile(io.BytesIO(whole[:33] + wrong + whole[33:]))
    np.testing.assert_array_equal(load_pixels(whole[:33] + wrong + whole[33:]), load_pixels(whole))


def test_a_png_whose_header_has_a_wrong_checksum_is_damaged(photo: Image.Image) -> None:
    data = bytearray(with_chunks(encoded(photo), tEXt=b"a\0b"))
    data[32] ^= 1
    assert "damaged PNG file" in str(refusal(bytes(data)))


@pytest.mark.parametrize("kind", ["iCCP", "zTXt"])
def test_the_profile_of_a_png_with_more_metadata_than_pillow_takes_counts(photo: Image.Image, kind: str) -> None:
    data = encoded(photo, icc_profile=swapped_profile())
    if kind == "zTXt":
        long = with_chunks(data, zTXt=b"name\0\0" + zlib.compress(bytes(2**21)))
    else:
        long = with_chunks(encoded(photo), iCCP=b"name\0\0" + zlib.compress(swapped_profile() + bytes(2**21)))
    with pytest.raises(ValueError, match=r"(?i)decompressed data too large"):
        PngImageFile(io.BytesIO(long))
    np.testing.assert_array_equal(load_pixels(long), load_pixels(data))


@pytest.mark.parametrize("content", [b"", b"name", b"name\0\0not compressed"])
def test_a_damaged_profile_beside_more_metadata_than_pillow_takes_spoils_no_png(
    photo: Image.Image, content: bytes
) -> None:
    long = with_chunks(encoded(photo), zTXt=b"name\0\0" + zlib.compress(bytes(2**21)), iCCP=content)
    np.testing.assert_array_equal(load_pixels(long), load_pixels(encoded(photo)))


def test_the_profile_of_a_jpeg_without_its_end_marker_counts(photo: Image.Image) -> None:
    whole = encoded(photo, "JPEG", icc_profile=swapped_profile())
    assert (load_pixels(whole) != load_pixels(encoded(photo, "JPEG"))).any()
    data = whole.removesuffix(b"\xff\xd9") + b"\xff\xd8\xff\xe0" + bytes(100)  # by which Pillow calls it damaged
    np.testing.assert_array_equal(load_pixels(data), load_pixels(whole))


def test_a_linear_profile_that_calls_itself_srgb_is_converted(photo: Image.Image) -> None:
    profile = swapped_profile() + b"sRGB IEC61966-2.1 (Linear RGB Profile)"
    expected = load_pixels(encoded(photo, icc_profile=swapped_profile()))
    np.testing.assert_array_equal(load_pixels(encoded(photo, icc_profile=profile)), expected)


def test_photos_of_one_camera_share_what_is_made_of_its_profile(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In threads as well, each of which has a photo of its own."""
    made: list[bytes] = []
    build = ImageCms.buildTransform

    def counted(profile: io.BytesIO, *others: Any) -> Any:
        made.append(profile.getvalue())
        return build(profile, *others)

    monkeypatch.setattr(ImageCms, "buildTransform", counted)
    cameras = [swapped_profile("one camera  1"), srgb_profile().replace("sRGB".encode("utf-16-be"), b"\0o\0t\0h\0r")]
    photos = [photo.rotate(10 * number) for number in range(9)]
    files = {camera: [encoded(each, icc_profile=camera) for each in photos] for camera in cameras}
    alone = {camera: load_pixels(files[camera][0]) for camera in cameras}
    assert mean_difference(alone[cameras[0]], plain(photo)) > 5 and (alone[cameras[1]] == plain(photo)).all()
    with ThreadPoolExecutor(4) as pool:
        pixels = list(pool.map(load_pixels, itertools.chain(*files.values(), *files.values())))
    assert made == cameras
    for other, each in zip(photos, pixels, strict=False):
        np.testing.assert_array_equal(each, load_pixels(encoded(other, icc_profile=swapped_profile("one camera  2"))))
    for one, again in zip(pixels[:18], pixels[18:], strict=True):
        np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_pictures_with_alpha_or_a_palette_are_brought_to_srgb_too(photo: Image.Image, mode: str) -> None:
    image = photo.convert(mode)
    expected = load_pixels(encoded(image.convert("RGB"), icc_profile=swapped_profile()))
    np.testing.assert_array_equal(load_pixels(encoded(image, icc_profile=swapped_profile())), expected)
    assert mean_difference(expected, plain(image)) > 5


def printers_profile(space: bytes, connection: bytes, **tags: bytes) -> bytes:
    """A profile of version 2 (ICC.1:2001-04), with these tags."""
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name.encode(), start + len(body), len(content))
        body += content
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    header = struct.pack(">I4xI4s4s4s12x4s28x", start + len(body), 0x02100000, b"prtr", space, connection, b"acsp")
    return header + d50 + bytes(48) + struct.pack(">I", len(tags)) + table + body


def grey_profile(gamma: float) -> bytes:
    return printers_profile(
        b"GRAY",
        b"XYZ ",
        wtpt=b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
        kTRC=b"curv" + struct.pack(">4xIH2x", 1, round(256 * gamma)),
    )


def ink_profile() -> bytes:
    """Four inks, each of which makes white paper darker by a quarter of L*, and none of which has a colour."""
    ramp = bytes(range(256))
    lab = [(round(255 - 63.75 * sum(inks)), 128, 128) for inks in itertools.product((0, 1), repeat=4)]
    matrix = struct.pack(">9i", *(65536 * (number % 4 == 0) for number in range(9)))
    tables = 4 * ramp + bytes(itertools.chain(*lab)) + 3 * ramp
    return printers_profile(b"CMYK", b"Lab ", A2B0=b"mft1" + struct.pack(">4x4B", 4, 3, 2, 0) + matrix + tables)


@pytest.mark.parametrize(("mode", "file_format"), [("L", "PNG"), ("LA", "PNG"), ("I;16", "PNG"), ("I;16B", "TIFF")])
def test_grey_photos_from_print_shops_are_brought_to_srgb(photo: Image.Image, mode: str, file_format: str) -> None:
    """Photoshop writes "Dot Gain 20%" into them, whose curve is not that of sRGB."""
    samples = np.asarray(photo.convert("L"))
    if mode.startswith("L"):
        image = photo.convert(mode)
    else:
        image = Image.fromarray((samples.astype(np.uint16) << 8).astype({"I;16": "<u2", "I;16B": ">u2"}[mode]))
    assert image.mode == mode
    data = encoded(image, file_format, icc_profile=grey_profile(1.4))
    light = np.repeat((samples[:, :, None] / 255) ** 1.4, 3, axis=2)
    expected = skimage_color.xyz2rgb(light @ skimage_color.colorconv.xyz_from_rgb.T) * 255  # sRGB of linear light
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.abs(load_pixels(source, size=photo.size) - expected).max() <= 2
    assert mean_difference(load_pixels(encoded(photo.convert("L"))), load_pixels(data)) > 20


def test_inks_have_the_colours_of_their_profile() -> None:
    inks = np.array(list(itertools.product((0, 255), repeat=4)), np.uint8).reshape(4, 4, 4)
    lab = np.zeros((4, 4, 3))
    lab[..., 0] = 100 - 25 * np.count_nonzero(inks, axis=2)
    expected = skimage_color.lab2rgb(lab) * 255
    image = Image.fromarray(inks, "CMYK").resize((64, 64), Image.Resampling.NEAREST)
    for options in ({"file_format": "TIFF"}, {"file_format": "JPEG", "quality": 100}):
        data = encoded(image, **options, icc_profile=ink_profile())
        for source in (data, Image.open(io.BytesIO(data))):
            middles = load_pixels(source, size=image.size)[8::16, 8::16]
            assert np.abs(middles - expected).max() <= 3


@pytest.mark.parametrize(
    "profile, mode", [(swapped_profile(), "RGB"), (grey_profile(1.4), "L"), (ink_profile(), "CMYK")]
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_profiles_spoil_no_picture(profile: bytes, mode: str, data: st.DataObject) -> None:
    damaged = bytearray(profile)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(profile) - 1))] = data.draw(st.integers(0, 255))
    image = Image.new("RGB", (5, 5), (90, 120, 150)).convert(mode)
    image.info["icc_profile"] = bytes(damaged[: data.draw(st.integers(0, len(profile)))])
    assert load_pixels(image).shape == (299, 299, 3)


def test_profiles_of_other_colour_spaces_are_left_aside(photo: Image.Image) -> None:
    grey, inks = photo.convert("L"), photo.convert("CMYK")
    broken = (srgb_profile().replace(b"RGB ", b"GRAY", 1), b"", b"x" * 200)
    for image, others in ((photo, (grey_profile(1.4), ink_profile())), (grey, (ink_profile(),)), (inks, ())):
        for profile in (srgb_profile(), *others, *broken):
            np.testing.assert_array_equal(load_pixels(encoded(image, "TIFF", icc_profile=profile)), plain(image))
    # Squashed before it is converted.
    data = encoded(inks, "TIFF", icc_profile=srgb_profile().replace(b"RGB ", b"CMYK", 1))
    assert np.abs(load_pixels(data).astype(int) - plain(inks)).max() <= 1


# -- large JPEG -------------------------------------------------------------------------------------------------------


# Tests of one shape follow each other.
@functools.lru_cache(maxsize=1)
def noise(shape: tuple[int, int]) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(0, 12, (shape[1], shape[0], 1))


@functools.lru_cache(maxsize=1)
def noisy(path: Path, shape: tuple[int, int]) -> Image.Image:
    image = Image.open(path).convert("RGB").resize(shape, Image.Resampling.LANCZOS)
    return Image.fromarray((np.asarray(image) + noise(shape)).clip(0, 255).astype(np.uint8))


def large_photo(path: Path, shape: tuple[int, int], **options: Any) -> bytes:
    """A photo with detail down to single pixels, which decoding at a reduced size could get wrong."""
    return encoded(noisy(path, shape), "JPEG", **options)


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
@pytest.mark.parametrize("shape", [(1196, 1196), (2000, 1500), (4000, 3000), (5200, 1300)], ids=str)
def test_large_jpegs_differ_by_less_than_a_level_from_the_plain_path(path: Path, shape: tuple[int, int]) -> None:
    data = large_photo(path, shape, quality=90)
    difference = np.abs(load_pixels(data).astype(int) - plain(Image.open(io.BytesIO(data))))
    assert difference.mean() < 1
    assert difference.max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(1601, 1607), (1609, 833), (401, 1203), (411, 433)], ids=str)
def test_sides_that_cannot_be_divided_are_not_stretched(shape: tuple[int, int], orientation: int) -> None:
    """libjpeg rounds up: where 201 pixels stand for 1601, the last of them stands for one, the others for eight."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = large_photo(PHOTOS[0], shape, quality=90, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    for size in ((100, 100), (60, 90)):
        difference = np.abs(load_pixels(data, size=size).astype(int) - plain(upright, size))
        assert difference.mean() < 1
        assert difference.max() <= 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_picture_keeps_its_proportions_and_edges(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = large_photo(PHOTOS[0], (1607, 811), quality=90, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    picture = load_picture(data, longest_side=100)
    size = (50, 100) if orientation > 4 else (100, 50)
    assert mean_difference(picture, plain(upright, size)) < 0.7


@pytest.mark.parametrize("shape", [(1195, 3000), (3000, 1195), (1000, 800), (4000, 20)], ids=str)
def test_jpegs_below_four_times_the_target_are_decoded_in_full(shape: tuple[int, int]) -> None:
    data = large_photo(PHOTOS[0], shape, quality=90)
    np.testing.assert_array_equal(load_pixels(data), plain(Image.open(io.BytesIO(data))))


def test_a_large_jpeg_is_decoded_at_the_least_size_that_is_enough() -> None:
    data = encoded(Image.open(PHOTOS[0]).resize((4000, 3000)), "JPEG")
    for least_side, expected in ((598, (1000, 750)), (375, (500, 375)), (1501, (4000, 3000))):
        image, _ = decode_file(
            io.BytesIO(data), "photo", least_side=least_side, max_pixels=12_000_000, allow_truncated=False
        )
        assert image.size == expected


def test_of_a_12_megapixel_jpeg_a_sixteenth_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the time is for `benchmarks.product` to measure: beside other tests, a clock tells little."""
    decoded = []

    def noted(*arguments: Any, **options: Any) -> Any:
        decoded.append(decode_file(*arguments, **options))
        return decoded[-1]

    monkeypatch.setattr(caplet.image, "decode_file", noted)
    load_pixels(large_photo(PHOTOS[0], (4000, 3000), quality=90))
    assert [image.size for image, _ in decoded] == [(1000, 750)]


ARITHMETIC = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000d090a0b0a080d0b0a0b0e0e0d0f13201513121213271c1e17"
    "202e2931302e292d2c333a4a3e333646372c2d405741464c4e525352323e5a615a50604a51524fffc9000b08001000100101"
    "1100ffcc000600101005ffda0008010100003f00dd118e3516b00518137f4a1c0248fead1ee066cfbb7ef6078a5f73ea1f1a"
    "edb8fb5e8b6352e873d3bf738830a61e7854e5fd3243af0ef2edf3f242bea1f7ed966957ccc0511ad7ae163bfbb72fa2ddd5"
    "35b4ef0a8617d9936312f1ec27c3141ccf9909c577041cfbe883d384d938fa0d82464bec81d5ab8314ab13157551021b44ff"
    "d9"
)
"""16x16 grey pixels, by `cjpeg -grayscale -arithmetic` of libjpeg-turbo 2.1."""


def test_a_jpeg_with_arithmetic_coding_may_be_longer_than_a_block() -> None:
    """Within its pixels, libjpeg cannot wait for the next 64 KiB of a file."""
    tables = ARITHMETIC[2:]
    for length in (65_500, 65_400):  # of a comment before them
        comment = b"\xff\xfe" + struct.pack(">H", length - 2) + bytes(length - 4) + b"\xff"  # and a byte to fill up
        np.testing.assert_array_equal(load_pixels(b"\xff\xd8" + comment + tables), load_pixels(ARITHMETIC))


def test_a_large_jpeg_without_loss_is_decoded_in_full() -> None:
    """libjpeg decodes no part of its size. In this one, every pixel is what is predicted of it, which takes one bit."""
    if int((features.version("libjpeg_turbo") or "0").split(".")[0]) < 3:
        pytest.skip("this libjpeg reads no JPEGs without loss")
    side = 1200
    frame = b"\xff\xc3" + struct.pack(">HBHHB3B", 11, 8, side, side, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB", 20, 0) + b"\1" + bytes(15) + b"\0"
    scan = b"\xff\xda" + struct.pack(">H6B", 8, 1, 1, 0, 1, 0, 0)
    pixels = load_pixels(b"\xff\xd8" + frame + table + scan + bytes(side * side // 8) + b"\xff\xd9")
    assert (pixels == 128).all()


# -- extreme shapes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 5000), (5000, 1), (3, 65000)], ids=str)
def test_small_and_narrow_pictures_are_stretched(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), np.uint8)
    assert np.abs(load_pixels(picture).astype(int) - plain(Image.fromarray(picture))).max() <= 1


@pytest.mark.parametrize(("longest_side", "least"), [(80, 10), (7, 1)])
def test_a_strip_is_shown_no_narrower_than_an_eighth_of_its_length(longest_side: int, least: int) -> None:
    strip = np.zeros((3, 500, 3), np.uint8)
    assert load_picture(strip, longest_side=longest_side).shape == (least, longest_side, 3)
    assert load_picture(strip.swapaxes(0, 1), longest_side=longest_side).shape == (longest_side, least, 3)


def test_all_corners_of_the_size_range_combine() -> None:
    for width, height in itertools.product((1, 2, 300), repeat=2):
        assert load_pixels(PHOTOS[0], size=(width, height)).shape == (height, width, 3)
