"""From every mode and colour profile that Pillow's images have to 8-bit sRGB."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from caplet.image_corrections import BITS_PER_SAMPLE, PHOTOMETRIC

if TYPE_CHECKING:
    from PIL import ImageCms

_BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: white, as on paper and on most pages where such pictures stand."""

_COLOUR_MAP, _SAMPLE_FORMAT = 320, 339
"""Tags of a TIFF (TIFF 6.0, sections 5 and 19)."""
_WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC


def to_rgb_or_grey(image: Image.Image) -> Image.Image:
    """Mode RGB or L from every mode Pillow has, over white where it is transparent; the image itself if it is so."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_8_bits(image)
        if isinstance(key := image.info.get("transparency"), int):
            grey.putalpha(Image.fromarray(np.asarray(image) != key))
        image = grey
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.mode == "La":
        image = image.convert("LA")
    image = _with_its_palette(_with_its_key(image))
    if _is_transparent(image):
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        over = Image.new("RGB", image.size, _BACKGROUND)
        over.paste(image, mask=image)
        return over
    return image if image.mode in ("RGB", "L") else image.convert("L" if image.mode == "1" else "RGB")


def _with_its_key(image: Image.Image) -> Image.Image:
    """The image without a transparency of another mode, such as Pillow's `convert` and `quantize` leave behind; and the
    transparent colour of a 16-bit PNG with the high bytes of its samples, which are all that Pillow keeps.
    """
    key = image.info.get("transparency")
    foreign = not isinstance(key, (int, bytes)) if image.mode == "P" else isinstance(key, bytes)
    if key is not None and foreign:
        image = image.copy()
        del image.info["transparency"]
    elif image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
    return image


def _with_its_palette(image: Image.Image) -> Image.Image:
    """The image, with the palette of some old TIFFs put right: programs wrote 8-bit values where the format has 16
    bits, and Pillow takes the high bytes, which are 0. libtiff and ImageMagick make this exception, too.
    """
    colours = getattr(image, "tag_v2", {}).get(_COLOUR_MAP)
    if image.mode != "P" or not colours or max(colours) > 255:
        return image
    image = image.copy()
    image.putpalette(np.reshape(colours, (3, -1)).T.astype(np.uint8).tobytes())
    return image


def _is_transparent(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA":  # as `quantize` makes them
        return True
    if image.mode == "RGBA" and image.format == "BMP":  # whose alpha many programs leave at 0; browsers then ignore it
        return image.getbbox(alpha_only=True) is not None
    return image.mode in ("LA", "PA", "RGBA", "RGBa") or (
        image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info
    )


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey 8-bit samples from 16-bit, 32-bit and float ones, whose own conversion in Pillow clips instead of scaling.

    These modes do not say which values are black and white: the narrowest usual range that holds all samples is taken
    (0 to 1 for floats, 0 to 255, 0 to 65535), and failing those the range from the least to the greatest. Modes of
    16 bits keep the high byte, as Pillow does with 16-bit colour. A TIFF says whether it has 12 bits, whether its 32
    bits have a sign, and whether 0 is white (TIFF 6.0, sections 8 and 19: BitsPerSample, SampleFormat,
    PhotometricInterpretation); Pillow passes over these here.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE)
    unsigned = image.mode == "I" and bits == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,)
    grey = _scaled_to_8_bits(image, 12 if bits == (12,) else 16, unsigned)
    return Image.fromarray(255 - grey if tags.get(PHOTOMETRIC) == _WHITE_IS_ZERO else grey)


def _scaled_to_8_bits(image: Image.Image, bits: int, unsigned: bool) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        sixteen: NDArray[np.uint16] = np.asarray(image)
        return (sixteen >> bits - 8 if bits < 16 or np.max(sixteen) > 255 else sixteen).astype(np.uint8)
    stored = np.asarray(image)
    samples = (stored.view(np.uint32) if unsigned else stored).astype(np.float32)  # ours: the rest is done in place
    np.nan_to_num(samples, copy=False, posinf=0.0, neginf=0.0)
    np.clip(samples, -1e37, 1e37, out=samples)
    low, high = float(np.min(samples)), float(np.max(samples))
    if low < 0 or high > 65535:
        samples -= np.float32(low)
        white = (high - low) or 1.0
    else:
        white = 1.0 if image.mode == "F" and high <= 1 else 255.0 if high <= 255 else 65535.0
    samples *= np.float32(255 / white)
    return np.rint(samples, out=samples).astype(np.uint8)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms  # only here: few pictures are LAB

    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    return transform.apply(image)


_SAME_GAMMA = 0.05
"""Relative difference to sRGB's gamma, taken as 1 / 2.2, that is passed over, as libpng does."""

_SRGB_NAMES = (b"sRGB IEC61966-2", b"sRGB built-in", b"sRGB Gamut with sRGB Transfer")
"""What most profiles that are sRGB are called, so that it need not be measured. In full: those of other colour spaces
speak of sRGB too, such as "DCI-P3 D65 Gamut with sRGB Transfer" in the photos of phones. "sRGB IEC61966-2.1 (Linear RGB
Profile)" is another one, so what speaks of that is measured."""


_PROFILED = {
    b"RGB ": ("RGB", ("RGB", "RGBA", "P")),
    b"GRAY": ("L", ("L", "LA", "I", "I;16", "I;16B")),
    b"CMYK": ("CMYK", ("CMYK",)),
}
"""Colour space of a profile (ICC.1, section 7.2.6) → the mode that a transform takes, and those of the pictures that it
can describe. Black and white are the same in all, so that those of one bit need none."""


def profile_of(image: Image.Image) -> tuple[bytes, str] | None:
    """The colour profile of an image, and the mode of what it converts; None where it has none that fits."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes):
        return None
    mode, described = _PROFILED.get(profile[16:20], ("", ()))
    return (profile, mode) if image.mode in described else None


def to_srgb(pixels: Image.Image, profile: tuple[bytes, str] | None, source: Image.Image) -> Image.Image:
    """sRGB pixels, if the source carries a colour profile, or the gamma of a PNG (its gAMA chunk: PNG, third edition,
    section 11.3.2.2), that says something else.

    Done on the small picture, where it costs a millisecond, and three where the profile was not met lately. A damaged
    profile is left aside: a picture in slightly wrong colours is still the picture.
    """
    gamma = source.info.get("gamma")
    described = source.info.get("icc_profile") is not None or "srgb" in source.info
    if not described and isinstance(gamma, float) and 0.1 < gamma < 10:
        if abs(2.2 * gamma - 1) < _SAME_GAMMA:
            return pixels
        samples: list[int] = encode_srgb(np.linspace(0, 1, 256) ** (1 / gamma)).tolist()
        return pixels.point(samples * len(pixels.getbands()))
    if profile is None:
        return pixels
    content, mode = profile
    if mode == "RGB":
        text = content.replace(b"\0", b"")  # names are ASCII in version 2, UTF-16 in version 4
        if b"inear" not in text and any(name in text for name in _SRGB_NAMES):
            return pixels
    try:
        transform = _transform_to_srgb(content, mode)
        return pixels if transform is None else transform.apply(pixels.convert(mode))
    except Exception:
        return pixels


_PROBE = Image.fromarray(
    np.stack(np.meshgrid(*[np.linspace(0, 255, 9)] * 3), axis=-1).reshape(27, 27, 3).astype(np.uint8)
)
_SAME_COLOUR = 4
"""Levels by which sRGB profiles under other names (camera makers', Facebook's "c2") differ from sRGB by rounding."""


@functools.lru_cache(maxsize=4)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Little CMS' transform from a colour profile, None if it gives what Pillow gives for this mode but for rounding.

    It takes longer to make than to use, and all photos of a phone have the same profile. Threads may share it, as it
    does not change in use. Raises one of several exceptions of Pillow's if the profile is damaged.
    """
    from PIL import ImageCms  # only here: Pillow can be built without it

    srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.PERCEPTUAL
    # cmsFLAGS_NOOPTIMIZE for inks: Little CMS takes 24 ms for a table of all of them, which serves far larger pictures.
    flags: Any = 0x0100 if mode == "CMYK" else 0
    transform = ImageCms.buildTransform(io.BytesIO(profile), srgb, mode, "RGB", intent, flags)
    probe = _PROBE.convert(mode)
    difference = np.asarray(transform.apply(probe)).astype(np.int16) - np.asarray(probe.convert("RGB"))
    return None if np.abs(difference).max() <= _SAME_COLOUR else transform


def encode_srgb(light: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Samples of linear light, 0 to 1, any shape: the transfer function of IEC 61966-2-1."""
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded), np.uint8)
