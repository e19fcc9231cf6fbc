"""HEIC, which is read where pillow-heif is installed; its own reading of a file is the reference."""

from __future__ import annotations

import io
import random
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from caplet.errors import ImageError
from caplet.image import load_pixels
from caplet.image_formats import identify
from pictures import encoded, plain, refusal

pillow_heif.register_heif_opener()  # for `Image.save`


def heic(image: Image.Image, **options: Any) -> bytes:
    """A file of it. The encoder is told to hurry, by which it takes a seventh of the time."""
    return encoded(image, "HEIF", quality=80, enc_params={"preset": "ultrafast"}, **options)


@pytest.fixture(scope="module")
def photo(photos: Path) -> Image.Image:
    return Image.open(photos / "cat.jpg").convert("RGB").resize((200, 150))


@pytest.fixture(scope="module")
def data(photo: Image.Image) -> bytes:
    return heic(photo)


def test_a_photo_is_what_the_plugin_reads(data: bytes, photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(data)
    expected = plain(pillow_heif.HeifImageFile(io.BytesIO(data)))
    for source in (path, data, io.BytesIO(data), pillow_heif.HeifImageFile(io.BytesIO(data))):
        assert np.array_equal(load_pixels(source), expected)
    assert np.abs(expected.astype(int) - plain(photo)).mean() < 5  # of 255: lossy, but the same picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright(photo: Image.Image, orientation: int) -> None:
    """HEIC has transformations of its own that turn a photo, which many files repeat as EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = photo.copy()
    turned.getexif()[0x0112] = orientation
    pixels = load_pixels(heic(photo, exif=exif.tobytes()))
    assert np.abs(pixels.astype(int) - plain(ImageOps.exif_transpose(turned))).mean() < 5


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_thumbnail_that_is_large_enough_is_read_instead(photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = photo.resize((1200, 900))
    data = heic(large, thumbnails=[200, 416, 800], exif=exif.tobytes())
    thumbnail = pillow_heif.open_heif(data)[0].get_thumbnail(1).to_pillow()
    pixels, whole = load_pixels(data), plain(pillow_heif.HeifImageFile(io.BytesIO(data)))
    assert sorted(thumbnail.size) == [312, 416]
    assert np.array_equal(pixels, plain(thumbnail))
    assert np.abs(pixels.astype(int) - whole).mean() < 5  # of 255
    with_no_other = heic(large, thumbnails=[397], exif=exif.tobytes())  # 298 the other way
    assert np.array_equal(load_pixels(with_no_other), whole)


def test_of_countless_thumbnails_none_is_tried(photo: Image.Image) -> None:
    """They may all be damaged, which only decoding tells."""
    few, many = (heic(photo.resize((600, 450)), thumbnails=[416] * count) for count in (4, 5))
    whole = plain(pillow_heif.HeifImageFile(io.BytesIO(many)))
    assert np.array_equal(load_pixels(many), whole)
    assert not np.array_equal(load_pixels(few), whole)


def test_a_thumbnail_of_another_shape_is_not_the_photo(photo: Image.Image) -> None:
    """Some cameras' have black bars."""
    data = heic(photo.resize((1200, 900)), thumbnails=[416])
    data = data.replace(struct.pack(">II", 416, 312), struct.pack(">II", 416, 300), 1)
    assert np.array_equal(load_pixels(data), plain(pillow_heif.HeifImageFile(io.BytesIO(data))))


def test_transparency_is_laid_over_white(photo: Image.Image) -> None:
    see_through = photo.copy()
    see_through.putalpha(Image.new("L", photo.size, 0))
    assert load_pixels(heic(see_through)).min() > 250


def test_the_limit_on_pixels_holds_before_anything_is_decoded(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillow_heif.HeifImageFile.load", lambda _: pytest.fail("decoded"))
    assert "200x150 is 30,000 pixels, the limit is 29,999" in str(refusal(data, max_pixels=29_999))


def test_a_file_that_breaks_off_is_called_truncated(data: bytes) -> None:
    assert "the HEIC file is truncated; get a complete copy" in str(refusal(data[: len(data) // 2]))
    assert "no part of such a file" in str(refusal(data[:-100], allow_truncated=True))


def test_whatever_is_damaged_is_a_picture_or_one_line(data: bytes) -> None:
    rng, refused = random.Random(5), 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            damaged[rng.randrange(12, 700)] = rng.choice((0, 255, rng.randrange(256)))
        try:
            assert load_pixels(bytes(damaged)).shape == (299, 299, 3)
        except ImageError as error:
            refused += 1
            assert str(error).count("\n") == 0  # noqa: PT017 - most are read
    assert refused > 30


def test_metadata_of_a_made_up_kind_does_not_end_the_process(photo: Image.Image) -> None:
    """As it does with pillow-heif before 1.8."""
    data = heic(photo, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    assert load_pixels(data.replace(b"Exif", b"\xffxif", 1)).shape == (299, 299, 3)


def test_without_a_package_that_reads_it_the_error_names_one(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert str(refusal(data)) == (
        "<bytes>: is a HEIC photo, which Pillow does not read; pip install pillow-heif, or convert it to JPEG"
    )


def test_nothing_is_imported_for_other_photos() -> None:
    assert not identify(b"\xff\xd8\xff\xe0", "a photo").package
