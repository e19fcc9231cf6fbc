"""The same picture gives the same pixels in whatever form it comes; Pillow's plain decoding is the reference."""

from __future__ import annotations

import errno
import gc
import importlib
import io
import mmap
import os
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from caplet.errors import ArgumentError, ImageError, ImageNotFoundError, ImageTypeError
from caplet.image import load_pixels
from caplet.image_file import refused
from caplet.image_formats import Format
from command_line import needs_bytes_in_names, needs_devices, needs_pipes, needs_set_blocking
from pictures import encoded, plain, refusal

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
@pytest.mark.parametrize("shape", [(224, 224), (500, 375), None], ids=str)
def test_a_photo_of_ordinary_size_gives_exactly_the_training_pixels(
    path: Path, shape: tuple[int, int] | None, tmp_path: Path
) -> None:
    image = Image.open(path)
    copy = tmp_path / "photo.jpg"
    image.resize(shape or image.size).save(copy, quality=90)
    pixels = load_pixels(copy)
    assert pixels.dtype == np.uint8 and pixels.shape == (299, 299, 3)
    np.testing.assert_array_equal(pixels, plain(Image.open(copy)))


def test_the_result_belongs_to_the_caller() -> None:
    pixels = load_pixels(PHOTOS[0])
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    assert load_pixels(np.zeros((299, 299, 3), np.uint8)).flags.writeable


def test_size_is_width_then_height() -> None:
    assert load_pixels(PHOTOS[0], size=(40, 30)).shape == (30, 40, 3)
    np.testing.assert_array_equal(load_pixels(PHOTOS[0].read_bytes(), size=(600, 450)), plain_of(PHOTOS[0], (600, 450)))


def plain_of(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    return plain(Image.open(path), size)


@pytest.mark.parametrize("size", [(40, 40), (25, 60), (60, 25)], ids=str)
def test_pixels_can_be_computed_as_the_bundle_format_says(size: tuple[int, int]) -> None:
    """docs/bundle-format.md, "Preprocessing": what a reader without Pillow goes by, to the last bit."""
    random = np.random.default_rng(0)
    for width, height in random.integers(2, 130, (60, 2)):
        photo = random.integers(0, 256, (height, width, 3), np.uint8)
        np.testing.assert_array_equal(load_pixels(photo, size=size), resized(photo, *size), f"{width}x{height}")


def resized(photo: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    lower, narrower = photo.shape[0] - height, photo.shape[1] - width
    columns_first = int(PIL.__version__.split(".")[0]) >= 13 and lower > 0 and lower > 2 * narrower
    if columns_first:
        return resized_rows(resized_columns(photo, height), width)
    return resized_columns(resized_rows(photo, width), height)


def resized_columns(photo: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    return resized_rows(photo.swapaxes(0, 1), height).swapaxes(0, 1)


def resized_rows(photo: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    scale = photo.shape[1] / width
    middles = (np.arange(width)[:, np.newaxis] + 0.5) * scale
    weights = np.maximum(1 - np.abs(np.arange(photo.shape[1]) + 0.5 - middles) / max(scale, 1), 0)
    whole = np.floor(weights / weights.sum(axis=1, keepdims=True) * 2**22 + 0.5).astype(np.int64)
    mean: NDArray[np.int64] = np.einsum("nm,hmc->hnc", whole, photo.astype(np.int64)) + 2**21 >> 22
    return np.clip(mean, 0, 255).astype(np.uint8)


# -- doors ------------------------------------------------------------------------------------------------------------

pictures = arrays.arrays(
    np.uint8,
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([3, 4])) | st.tuples(*[st.integers(1, 40)] * 2),
)


@settings(max_examples=60, deadline=None)
@given(picture=pictures, file_format=st.sampled_from(["PNG", "TIFF", "WEBP"]))
def test_the_same_picture_gives_the_same_pixels_through_every_door(
    picture: NDArray[np.uint8], file_format: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = Image.fromarray(picture)
    data = encoded(image, file_format, **({"lossless": True, "exact": True} if file_format == "WEBP" else {}))
    path = tmp_path_factory.getbasetemp() / "door"
    path.write_bytes(data)
    expected = load_pixels(picture)
    doors: dict[str, Any] = {
        "path": path,
        "text path": str(path),
        "bytes path": BytesPath(path),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "reversed memoryview": memoryview(data[::-1])[::-1],
        "file object": io.BytesIO(data),
        "pipe": Pipe(data),
        "PIL image": image,
        "lazily opened PIL image": Image.open(path),
        "Fortran order": np.asfortranarray(picture),
        "negative strides": picture[::-1].copy()[::-1],
    }
    for door, source in doors.items():
        np.testing.assert_array_equal(load_pixels(source), expected, err_msg=door)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        np.testing.assert_array_equal(load_pixels(file), expected)
        np.testing.assert_array_equal(load_pixels(mapped), expected)


class BytesPath(os.PathLike[bytes]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


class Pipe:
    """The least that a binary file object can do: give a few bytes at a time, once."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def read(self, size: int = -1) -> bytes:
        part, self.rest = self.rest[:7], self.rest[7:]
        return part


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A photo that is decoded at a part of its size, stored on its side, in colours that are not sRGB."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"rXYZ", b"tmp_")
    profile = profile.replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")
    noise = np.random.default_rng(0).integers(0, 256, (1800, 2600, 3), np.uint8)
    picture = Image.blend(Image.open(PHOTOS[0]).convert("RGB").resize((2600, 1800)), Image.fromarray(noise), 0.2)
    picture.save(tmp_path / "large.jpg", exif=exif, icc_profile=profile)
    return tmp_path / "large.jpg"


def test_a_large_jpeg_gives_the_same_pixels_through_every_door_that_has_its_file(large: Path) -> None:
    expected = load_pixels(large)
    with large.open("rb") as file, Image.open(large) as opened, Image.open(file) as opened_by_file:
        for source in (large.read_bytes(), io.BytesIO(large.read_bytes()), opened, opened_by_file, file):
            np.testing.assert_array_equal(load_pixels(source), expected)
        assert opened.size == (2600, 1800) and opened.tile  # not decoded meanwhile


def test_a_large_jpeg_that_was_decoded_already_differs_by_less_than_a_level(large: Path) -> None:
    decoded = ImageOps.exif_transpose(Image.open(large))
    decoded.info.pop("icc_profile")
    image = Image.open(large)
    image.load()
    assert np.abs(load_pixels(image).astype(int) - load_pixels(large)).mean() < 1
    np.testing.assert_array_equal(load_pixels(np.asarray(decoded)), load_pixels(decoded))


def test_what_the_caller_did_to_an_opened_image_counts(large: Path) -> None:
    upright = Image.open(large)
    upright.getexif()[0x0112] = 1
    assert np.abs(load_pixels(upright).astype(int) - load_pixels(large)).mean() > 5
    grey = Image.open(large)
    grey.draft("L", (650, 450))
    assert np.ptp(load_pixels(grey), axis=2).max() == 0
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    second = Image.open(io.BytesIO(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])))
    assert load_pixels(second)[0, 0].argmax() == 0
    second.seek(1)
    assert load_pixels(second)[0, 0].argmax() == 2
    painted = Image.open(io.BytesIO(encoded(frames[0], "TIFF", compression="tiff_lzw")))
    painted.paste("blue", (0, 0, 8, 8))  # after which Pillow still has its file
    assert load_pixels(painted, allow_truncated=True)[0, 0].argmax() == 2


def test_a_truncated_jpeg_is_truncated_also_when_pillow_opened_it(large: Path) -> None:
    half = large.read_bytes()[:-90_000]
    assert "truncated" in str(refusal(Image.open(io.BytesIO(half))))
    expected = load_pixels(half, allow_truncated=True)
    np.testing.assert_array_equal(load_pixels(Image.open(io.BytesIO(half)), allow_truncated=True), expected)


def test_grey_arrays_are_grey_photos() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = load_pixels(np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(load_pixels(grey), expected)
    np.testing.assert_array_equal(load_pixels(grey[:, :, None]), expected)


def test_channels_stay_in_order() -> None:
    pixels = load_pixels(np.full((5, 5, 3), (200, 100, 50), np.uint8))
    assert pixels[0, 0].tolist() == [200, 100, 50]


@needs_pipes
def test_a_path_may_be_a_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(PHOTOS[0].read_bytes(),))
    writer.start()
    np.testing.assert_array_equal(load_pixels(tmp_path / "pipe"), load_pixels(PHOTOS[0]))
    writer.join()


def test_the_name_of_an_open_file_may_be_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on macOS, where opening such a name duplicates the descriptor, and so shares its position: fd(4)."""
    expected = load_pixels(PHOTOS[0]).tobytes()
    with PHOTOS[0].open("rb") as stdin:
        monkeypatch.setattr(
            "caplet.image_source.open", lambda *_: os.fdopen(os.dup(stdin.fileno()), "rb"), raising=False
        )
        for _ in range(2):
            assert load_pixels("/dev/stdin").tobytes() == expected


@needs_devices
def test_a_path_may_be_a_pipe() -> None:
    code = "import caplet.image, sys; sys.stdout.buffer.write(caplet.image.load_pixels('/dev/stdin').tobytes())"
    done = subprocess.run([sys.executable, "-c", code], input=PHOTOS[0].read_bytes(), capture_output=True, check=True)
    assert done.stdout == load_pixels(PHOTOS[0]).tobytes()


@needs_bytes_in_names
def test_file_names_that_are_not_utf_8_work(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9\n.jpg")  # noqa: PTH118 (pathlib takes no bytes)
    try:
        Path(os.fsdecode(path)).write_bytes(PHOTOS[0].read_bytes())
    except OSError:
        pytest.skip("this file system wants UTF-8")
    np.testing.assert_array_equal(load_pixels(os.fsdecode(path)), load_pixels(PHOTOS[0]))


# -- the caller's object ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 5, 10**6])
def test_a_file_object_is_read_from_its_start_and_left_where_it_was(position: int, tmp_path: Path) -> None:
    data = encoded(Image.open(PHOTOS[0]), "TIFF", compression="tiff_lzw")  # libtiff moves file descriptors itself
    path = tmp_path / "photo.tif"
    path.write_bytes(data)
    for stream in (io.BytesIO(data), path.open("rb"), path.open("rb", buffering=0)):
        with stream:
            stream.seek(position)
            np.testing.assert_array_equal(load_pixels(stream), load_pixels(data))
            assert not stream.closed and stream.tell() == position
            stream.seek(0)
            assert stream.read() == data


def test_a_file_object_is_left_where_it_was_when_reading_fails() -> None:
    stream = io.BytesIO(b"not a photo at all")
    stream.seek(3)
    with pytest.raises(ImageError):
        load_pixels(stream)
    assert stream.tell() == 3


def test_a_photo_in_a_tar_file_that_is_read_as_a_stream() -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(PHOTOS[0])
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="r|") as tar:  # whose members have a `seekable` that fails
        photo = tar.extractfile(next(iter(tar)))
        assert photo is not None
        np.testing.assert_array_equal(load_pixels(photo), load_pixels(PHOTOS[0]))


@pytest.mark.parametrize("mode", ["1", "L", "I;16"])
@pytest.mark.parametrize("shape", [(500, 375), (7, 900), (900, 7), (40, 30)], ids=str)
def test_grey_pictures_are_resized_as_such_and_come_out_the_same(
    mode: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = Image.open(PHOTOS[0]).convert("L").resize(shape)
    turned = Image.Exif()
    turned[0x0112] = 6
    options: list[dict[str, Any]] = [{}, {"exif": turned}, {"pnginfo": gamma_of(1.0)}]
    stored = Image.fromarray(np.asarray(grey, np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    colours = (grey if mode == "I;16" else stored).convert("RGB")
    greys = [encoded(stored, **each) for each in options]
    expected = [load_pixels(encoded(colours, **each)) for each in options]
    convert, converted = Image.Image.convert, []

    def noted(image: Image.Image, mode: str) -> Image.Image:
        if mode == "RGB":
            converted.append(image.size)
        return convert(image, mode)

    monkeypatch.setattr(Image.Image, "convert", noted)
    for data, pixels in zip(greys, expected, strict=True):
        np.testing.assert_array_equal(load_pixels(data), pixels)
    assert converted == [(299, 299)] * len(options)


def test_large_grey_jpegs_are_those_of_pillow() -> None:
    data = encoded(Image.open(PHOTOS[0]).convert("L").resize((1203, 1301)), "JPEG")
    image = Image.open(io.BytesIO(data))
    drafted = image.draft(None, (598, 598))
    assert drafted is not None and image.size == (602, 651)
    expected = image.convert("RGB").resize((299, 299), Image.Resampling.BILINEAR, drafted[1])
    np.testing.assert_array_equal(load_pixels(data), np.asarray(expected))


def gamma_of(gamma: float) -> PngInfo:
    chunk = PngInfo()
    chunk.add(b"gAMA", struct.pack(">I", round(100_000 * gamma)))
    return chunk


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_a_pil_image_is_not_changed(mode: str) -> None:
    image = Image.open(PHOTOS[0]).resize((30, 20)).convert("L" if mode == "I;16" else "RGB").convert(mode)
    exif = image.getexif()
    exif[0x0112] = 6
    image.info.update(exif=exif.tobytes(), icc_profile=b"damaged", note="keep me")
    info, before = dict(image.info), image.tobytes()
    load_pixels(image)
    assert (image.mode, image.size, image.info, image.tobytes()) == (mode, (30, 20), info, before)


def test_a_pil_image_keeps_its_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    image = Image.open(io.BytesIO(data))
    image.seek(1)
    assert load_pixels(image)[0, 0].tolist() == [0, 255, 0]
    assert image.tell() == 1
    assert load_pixels(data)[0, 0].tolist() == [255, 0, 0]


def test_arrays_and_buffers_are_not_changed() -> None:
    array = np.random.default_rng(1).integers(0, 256, (20, 30, 4), np.uint8)
    before = array.copy()
    array.setflags(write=False)
    load_pixels(array)
    np.testing.assert_array_equal(array, before)
    data = bytearray(PHOTOS[0].read_bytes())
    load_pixels(data)
    assert data == PHOTOS[0].read_bytes()
    data.append(0)  # raises BufferError if anything still holds the buffer


# -- what is not an image ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [None, 7, 1.5, {}, object()], ids=lambda value: type(value).__name__)
def test_other_types_are_type_errors(source: Any) -> None:
    error = refusal(source)
    assert isinstance(error, ImageTypeError) and isinstance(error, TypeError)
    assert "pass a path" in str(error)


def test_several_photos_at_once_say_where_they_belong() -> None:
    for photos in (["photo.jpg"], (PHOTOS[0], PHOTOS[1])):
        error = refusal(photos)
        assert isinstance(error, ImageTypeError) and "several to caption_many" in str(error)


@pytest.mark.parametrize("answer", [3, None, ValueError("odd")], ids=repr)
def test_a_path_object_that_gives_no_path_is_a_type_error(answer: Any) -> None:
    class Odd(os.PathLike[str]):
        def __fspath__(self) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    error = refusal(Odd())
    assert isinstance(error, ImageTypeError) and str(error).startswith("<Odd>: gives no path")


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none.jpg")
    assert isinstance(error, ImageNotFoundError) and isinstance(error, FileNotFoundError)
    assert str(error) == f"{tmp_path / 'none.jpg'}: no such file; check the path"
    assert isinstance(refusal(""), FileNotFoundError)
    assert str(refusal("")) == "<empty path>: no such file; check the path"


def test_urls_are_not_fetched() -> None:
    assert "download it first" in str(refusal("https://example.org/cat.jpg"))


def test_an_image_in_base64_does_not_fill_the_log() -> None:
    """Text is a path, and web pages send images as text, of megabytes."""
    error = refusal("data:image/jpeg;base64," + "/9j/" * 10**6)
    assert isinstance(error, ImageError)
    assert str(error).startswith("data:image/jpeg;base64,/9j/")
    assert len(str(error)) + len(str(error.__cause__)) < 500  # a logged traceback has both


@pytest.mark.parametrize(
    ("name", "remedy"), [("*.jpg", "check the path"), ("https://example.org/cat.jpg", "caplet reads no URLs: download")]
)
def test_a_name_that_windows_gives_to_no_file_is_that_of_a_missing_one(
    name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, *_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument", path)

    monkeypatch.setattr("caplet.image_source.open", refuse, raising=False)
    error = refusal(name)
    assert isinstance(error, ImageNotFoundError)
    assert str(error).startswith(f"{name}: no such file; {remedy}")
    there = str(refusal(tmp_path))  # some devices say so, too
    assert there.startswith(f"{tmp_path}: cannot be read (Invalid argument)")


def test_folders_and_unreadable_paths_say_so(tmp_path: Path) -> None:
    assert str(refusal(tmp_path)) == f"{tmp_path}: is a folder; give a photo in it"
    on_windows = refused(PermissionError(13, "Permission denied", str(tmp_path)), "folder")
    assert str(on_windows) == "folder: is a folder; give a photo in it"
    for impossible in ("a\0b", "a\ud800b"):
        assert isinstance(refusal(impossible), ImageNotFoundError)
    assert isinstance(refusal("x" * 5000), ImageError)
    assert isinstance(refusal(""), ImageError)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "is empty"),
        (b"hello", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\xff\x0a\xfa\x7f\x01\x90", "is a JPEG XL photo"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "is a JPEG XL photo"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(100), "AVIF"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1heic" + bytes(100), "AVIF"),
        (b"\0\0\0\x18metaavif\0\0\0\0avif" + bytes(100), "not an image"),
        (b"\0\0\0\x18metaheic\0\0\0\0heic" + bytes(100), "not an image"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(100), "not an image"),
        (b"RIFX\x24\0\0\0WEBPVP8 " + bytes(100), "not an image"),
    ],
)
def test_bytes_that_are_not_an_image_say_so(data: bytes, cause: str) -> None:
    for source in (data, bytearray(data), io.BytesIO(data), Pipe(data)):
        error = refusal(source)
        assert isinstance(error, ImageError) and isinstance(error, ValueError)
        assert cause in str(error)
    assert str(refusal(data)).startswith("<bytes>: ")
    assert str(refusal(io.BytesIO(data))).startswith("<file object>: ")


@pytest.mark.parametrize("first", [b"", b"mif1", b"msf1"])
@pytest.mark.parametrize(
    ("brands", "kind"), [(b"heic heix heim heis hevc hevx", "HEIC"), (b"avif avis", "AVIF")], ids=str
)
def test_every_brand_of_heic_and_avif_is_known(first: bytes, brands: bytes, kind: str) -> None:
    for brand in brands.split():
        head = b"\0\0\0\x18ftyp" + (first or brand) + b"\0\0\0\0miaf" + brand
        assert kind in str(refusal(head + bytes(100)))


@pytest.mark.parametrize("file_format", ["EPS", "PDF", "ICO", "TGA", "SPIDER", "PCX"])
def test_formats_off_the_list_are_not_opened(file_format: str) -> None:
    data = encoded(Image.open(PHOTOS[0]).resize((16, 16)).convert("L"), file_format)
    assert "not an image caplet can read" in str(refusal(data))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_text_mode_files_say_what_to_do(encoding: str) -> None:
    with PHOTOS[0].open(encoding=encoding) as file:
        error = refusal(file)
    assert isinstance(error, ImageTypeError) and "'rb'" in str(error)


def test_a_read_that_does_not_give_bytes_is_not_called_text() -> None:
    class Upload:
        def read(self, size: int) -> list[int]:
            return [1, 2, 3]

    error = refusal(Upload())
    assert isinstance(error, ImageTypeError) and "its read() returns a list, not bytes" in str(error)


@pytest.mark.filterwarnings("error")
def test_an_asynchronous_file_says_what_to_do() -> None:
    class Upload:
        async def read(self, size: int = -1) -> bytes:
            return b""

        async def seekable(self) -> bool:
            return True

    error = refusal(Upload())
    assert isinstance(error, ImageTypeError) and "await it" in str(error)
    gc.collect()  # Python warns of a coroutine that nobody awaited when that is freed


def test_a_path_within_an_archive_says_what_to_do(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(PHOTOS[0], "photo.jpg")
    path = zipfile.Path(tmp_path / "photos.zip", "photo.jpg")
    error = refusal(path)
    assert isinstance(error, ImageTypeError) and "pass its read_bytes()" in str(error)
    np.testing.assert_array_equal(load_pixels(path.read_bytes()), load_pixels(PHOTOS[0]))


def test_an_array_of_a_files_bytes_says_what_to_do() -> None:
    array = np.fromfile(PHOTOS[0], np.uint8)  # as OpenCV's `imencode` gives it
    assert "pass its tobytes()" in str(refusal(array))
    np.testing.assert_array_equal(load_pixels(array.tobytes()), load_pixels(PHOTOS[0]))


@pytest.mark.parametrize("there", [0, 1000])
@needs_set_blocking
def test_a_stream_that_does_not_block_is_neither_empty_nor_truncated(there: int) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.write(writing, PHOTOS[0].read_bytes()[:there])
    with open(reading, "rb", buffering=0) as stream:
        assert "has no data yet" in str(refusal(stream))
    os.close(writing)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EIO])
@pytest.mark.parametrize("place", ["builtins.open", "importlib.import_module"])
def test_what_the_system_lacks_is_not_called_damage(place: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        error = refusal(PHOTOS[0])
    remedy = "check the path and its permissions" if code == errno.EIO else "close some, or raise their limit"
    assert str(error) == f"{PHOTOS[0]}: cannot be read ({os.strerror(code)}); {remedy}"


def test_a_decoder_that_cannot_be_loaded_is_not_called_old(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ImportError("fcntl.so: cannot open shared object file: Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("importlib.import_module", fail)
        message = str(refusal(PHOTOS[0]))
    assert "Too many open files" in message and "update" not in message and "damaged" not in message


def test_an_offset_in_a_damaged_file_is_not_called_an_error_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "photo.tif"
    path.write_bytes(b"II+\0\x08\0\0\0" + (2**63 - 1).to_bytes(8, "little"))  # beyond the end of any file
    assert "damaged TIFF file" in str(refusal(path))


def test_an_endless_stream_is_refused_at_its_first_bytes() -> None:
    class Endless:
        served = 0

        def read(self, size: int) -> bytes:
            self.served += size
            return bytes(size)

    endless = Endless()
    refusal(endless)
    assert endless.served <= 1 << 20


def test_a_stream_longer_than_any_picture_within_the_limit_is_refused() -> None:
    data = PHOTOS[0].read_bytes() + bytes(3 << 20)
    assert "longer than" in str(refusal(io.BytesIO(data), max_pixels=500 * 500 // 2))
    load_pixels(io.BytesIO(data))  # bytes after the end of a picture are harmless


def test_a_file_object_that_fails_is_an_image_error() -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise ConnectionResetError(104, "Connection reset by peer")

    assert str(refusal(Broken())) == "<file object>: cannot be read (Connection reset by peer); pass it as a file"

    class TooLong:
        def read(self, size: int) -> bytes:
            raise ValueError("413 Request Entity Too Large")  # as a server's stream

    error = refusal(TooLong())
    assert str(error) == "<file object>: cannot be read (413 Request Entity Too Large); pass it as a file"
    assert isinstance(error.__cause__, ValueError)

    class Raises:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def closed(self) -> bool:  # of a kind of its own, which tells nothing
            return False

        def read(self, size: int) -> bytes:
            raise self.error

    assert "cannot be read (TimeoutError); pass it as a file" in str(refusal(Raises(TimeoutError())))
    assert "more memory than there is" in str(refusal(Raises(MemoryError())))
    assert "warnings are errors in this process" in str(refusal(Raises(DeprecationWarning("old"))))
    closed = io.BytesIO(PHOTOS[0].read_bytes())
    closed.close()
    assert str(refusal(closed)) == "<file object>: was closed; pass it before you close it"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_pil_image_that_was_closed_is_called_that(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encoded(Image.open(PHOTOS[0]), file_format))
    with Image.open(path) as after_with:
        pass
    closed = Image.open(path)
    closed.close()
    with path.open("rb") as file:
        without_file = Image.open(file)
    loaded = Image.open(path)
    loaded.load()
    loaded.close()
    for image in (after_with, closed, without_file, loaded):
        assert str(refusal(image)) == "<PIL image>: was closed; pass it before you close it"
    with Image.open(path) as loaded:
        loaded.load()
    np.testing.assert_array_equal(load_pixels(loaded), load_pixels(path))


def test_an_error_without_a_message_is_called_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Image.Image, "resize", fail)
    assert "cannot be decoded (AssertionError)" in str(refusal(PHOTOS[0]))


def test_what_pillow_says_of_a_damaged_file_is_told() -> None:
    data = encoded(Image.new("RGB", (40, 40)), "PNG")
    rows = data.index(b"IDAT") + 4
    error = refusal(data[: rows + 5] + b"zzzzzz" + data[rows + 11 :])
    assert isinstance(error.__cause__, OSError)  # Pillow's own OSError has a text but no `strerror`
    assert f"cannot be decoded ({error.__cause__})" in str(error)
    damaged_header = data[:29] + bytes([data[29] ^ 1]) + data[30:]
    assert "damaged PNG file" in str(refusal(damaged_header))  # the file is whole, not truncated


def test_a_whole_file_of_a_kind_that_pillow_does_not_know_is_not_called_damaged() -> None:
    photo = Image.new("RGB", (40, 30), (1, 2, 3))
    uncompressed, jpeg_xl = (struct.pack("<HHIHH", 259, 3, 1, compression, 0) for compression in (1, 50002))
    jpeg, bmp = encoded(photo, "JPEG"), encoded(photo, "BMP")
    frame = jpeg.index(b"\xff\xc0") + 4
    kinds = {
        "JPEG (cannot handle 12-bit layers)": jpeg[:frame] + b"\x0c" + jpeg[frame + 1 :],
        "BMP (Unsupported BMP pixel depth (2))": bmp[:28] + b"\2" + bmp[29:],
        "TIFF (unknown pixel mode)": encoded(photo, "TIFF", tiffinfo={339: (3, 3, 3)}),
        "TIFF (50002)": encoded(photo, "TIFF").replace(uncompressed, jpeg_xl),
    }
    for kind, data in kinds.items():
        expected = f"<bytes>: is a kind of {kind}, which caplet does not read; save it as PNG"
        assert str(refusal(data)) == expected


def test_a_raw_photo_whose_first_picture_states_no_size_is_not_called_damaged() -> None:
    """Sony's ARW: a JPEG at 513, of 514 bytes, and nothing of its width."""
    tags = {254: 1, 259: 6, 274: 1, 513: 100, 514: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    error = refusal(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(150))
    if "NoneType" in str(error):
        pytest.skip("this Pillow does not say what is missing")
    assert "is a kind of TIFF (Missing dimensions), which caplet does not read" in str(error)


def test_a_decoder_this_pillow_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.AvifImagePlugin", None)  # as in Pillow before 11.3
    assert "this Pillow cannot read AVIF; update Pillow" in str(refusal(b"\0\0\0\x20ftypavif" + bytes(30)))


@pytest.mark.parametrize("stem", ["Avif", "WebP"])
def test_a_decoder_without_its_library_is_named(monkeypatch: pytest.MonkeyPatch, stem: str) -> None:
    """As AVIF in the wheels of Pillow 11.2, or WebP where a distribution leaves it out."""
    file = encoded(Image.new("RGB", (9, 9)), stem.upper())
    plugin = importlib.import_module(f"PIL.{stem}ImagePlugin")
    monkeypatch.setattr(plugin, "SUPPORTED", False)
    monkeypatch.delattr(plugin, f"_{stem.lower()}")
    assert str(refusal(file)).lower() == f"<bytes>: this pillow cannot read {stem.lower()}; update pillow"


@pytest.mark.parametrize(
    "decoder, name, options",
    [("jpeg2k", "JPEG 2000", {"file_format": "JPEG2000"}), ("libtiff", "TIFF", {"compression": "tiff_lzw"})],
)
def test_a_library_that_this_pillow_was_built_without_is_no_damage(
    monkeypatch: pytest.MonkeyPatch, decoder: str, name: str, options: dict[str, str]
) -> None:
    file = encoded(Image.new("RGB", (9, 9)), **{"file_format": "TIFF", **options})
    monkeypatch.delattr(Image.core, f"{decoder}_decoder")
    assert str(refusal(file)) == f"<bytes>: this Pillow cannot read {name}; update Pillow"


def test_a_pillow_of_which_a_part_cannot_be_imported_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update of the system's libraries."""

    def fail(_: Format) -> None:
        raise ImportError("libwebp.so.6: no such file")

    monkeypatch.setattr(Format, "plugin", fail)
    expected = "<bytes>: Pillow cannot be imported (libwebp.so.6: no such file); check its installation"
    assert str(refusal(encoded(Image.new("RGB", (9, 9)), "WEBP"))) == expected


def test_too_little_memory_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", fail)
    assert "more memory than there is" in str(refusal(PHOTOS[0]))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_arrays_of_another_type_or_shape_say_what_is_expected(array: NDArray[Any]) -> None:
    message = str(refusal(array))
    assert message.startswith("<array>: ") and (str(array.dtype) in message or str(array.shape) in message)


@pytest.mark.parametrize(
    "source", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0), np.uint8), Image.new("RGB", (0, 7))]
)
def test_pictures_without_pixels_are_refused(source: Any) -> None:
    assert "has no pixels" in str(refusal(source))


@pytest.mark.parametrize(
    "options",
    [
        {"size": (0, 299)},
        {"size": (299, -1)},
        {"size": (299.0, 299)},
        {"size": (299,)},
        {"size": 299},
        {"size": (True, 299)},
        {"size": (1_000_000, 299)},
        {"max_pixels": 0},
        {"max_pixels": None},
    ],
    ids=str,
)
def test_options_without_sense_are_argument_errors(options: dict[str, Any]) -> None:
    error = refusal(PHOTOS[0], **options)
    assert isinstance(error, ArgumentError) and isinstance(error, ValueError)


class WithoutSeekable:
    """Such as SpooledTemporaryFile before Python 3.11, which has `read`, `tell` and `seek`, but not `seekable`."""

    def __init__(self, content: bytes) -> None:
        file = io.BytesIO(content)
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def test_a_file_object_that_does_not_say_that_it_is_seekable_is_put_back() -> None:
    source: Any = WithoutSeekable(PHOTOS[0].read_bytes())
    source.seek(7)
    first = load_pixels(source)
    assert source.tell() == 7
    assert np.array_equal(load_pixels(source), first)


@pytest.mark.parametrize("missing", [True, False])
def test_a_file_object_that_cannot_be_put_back_is_read_from_where_it_is(missing: bool) -> None:
    def seek(*_: int) -> None:
        raise OSError(errno.ESPIPE, "Illegal seek")

    source: Any = WithoutSeekable(PHOTOS[0].read_bytes())
    if missing:
        del source.seek
    else:
        source.seek = seek
    np.testing.assert_array_equal(load_pixels(source), load_pixels(PHOTOS[0]))
