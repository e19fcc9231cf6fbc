"""A caption explained: the photo, and for each word where the model looked while it chose the word."""

from __future__ import annotations

import bisect
import errno
import functools
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from caplet.arguments import whole_number
from caplet.colour import encode_srgb
from caplet.errors import ArgumentError
from caplet.image import load_picture
from caplet.image_limits import MAX_PIXELS
from caplet.image_source import ImageSource
from caplet.inputs import is_descriptor
from caplet.output import whole_file

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Colour: TypeAlias = tuple[int, int, int]

_SMALLEST_PANEL, _LARGEST_PANEL = 64, 4096  # pixels
_PAPER: _Colour = (255, 255, 255)
_INK: _Colour = (28, 28, 32)
_SOFT_INK: _Colour = (108, 108, 118)  # on paper, a contrast of 5.2; WCAG asks for 4.5
_TRACK: _Colour = (232, 232, 236)


def plot_attention(
    image: ImageSource,
    words: Sequence[str],
    attention: ArrayLike,
    probabilities: Sequence[float],
    *,
    caption: str | None = None,
    panel: int = 280,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
) -> Image.Image:
    """Draw the photo with its caption, and beside it a panel for each word: heat over the photo, word and probability.

    Heat is the share of attention at each place, on one scale for all words, so that panels can be compared; the scale
    is under the caption. Brightness grows with the square root of the share, as a few places usually have most of it.
    Captions with letters other than ASCII's are written in a font of the system that has them, if there is one.

    Args:
        image: the photo, in any form `load_pixels` takes.
        words: the words of the caption, in order.
        attention: [words, rows, columns], shares of attention, each word's adding up to 1; the grid covers the photo.
        probabilities: the probability of each word, 0 to 1.
        caption: the sentence; the words joined by spaces if not given.
        panel: longest side of a word's panel, 64 to 4096 pixels; everything else grows with it.
        max_pixels, allow_truncated: see `load_pixels`.

    Returns:
        An RGB image; for a caption of ten words about 6 panels wide and 3 high.

    Raises:
        ArgumentError: the numbers of words, attention maps and probabilities differ, or a value makes no sense.
        ImageError: the photo cannot be read.
    """
    shares = _check(words, attention, probabilities)
    if whole_number("panel", panel, _LARGEST_PANEL) < _SMALLEST_PANEL:
        raise ArgumentError("panel", f"is {panel}", f"it must be at least {_SMALLEST_PANEL} pixels, to be legible")
    sentence = " ".join(words) if caption is None else caption
    layout = _Layout(panel, len(words), _typeface(set(sentence).union(*words)))
    photo = Image.fromarray(
        load_picture(image, longest_side=layout.photo, max_pixels=max_pixels, allow_truncated=allow_truncated)
    )
    peak = float(np.max(shares, initial=0.0)) or 1.0
    photo_column = _photo_column(photo, sentence, peak, layout)
    scale = panel / max(photo.size)
    small = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
    parts = [(photo_column, 0, 0)]
    left = photo_column.width + 2 * layout.gap
    for index, (word, share, probability) in enumerate(zip(words, shares, probabilities, strict=True)):
        row, column = divmod(index, layout.columns)
        drawn = _word_panel(small, word, share / peak, probability, layout)
        parts.append((drawn, left + column * (drawn.width + layout.gap), row * (drawn.height + layout.gap)))
    return _on_paper(parts, layout)


_MARK = ("Software", "caplet")
# Errors of replacing a file that may still be written in place: it is mounted by itself, as into a container, or its
# folder takes no new files.
_IRREPLACEABLE = (errno.EBUSY, errno.EACCES, errno.EROFS)


def save_drawing(drawing: Image.Image, path: Path) -> None:
    """Write a drawing as a PNG file that `is_drawing` recognises. Raises OSError.

    The file appears whole or not at all, unless it is a pipe, a device, an open file or one that cannot be replaced.
    """
    text = PngInfo()
    text.add_text(*_MARK)
    save = functools.partial(drawing.save, format="PNG", pnginfo=text)
    if is_descriptor(str(path)) or (path.exists() and not path.is_file()):
        _save_in_place(save, path)
        return
    target = Path(os.path.realpath(path))  # replace what a link leads to, not the link
    try:
        with whole_file(target) as file:
            save(file)
    except OSError as error:
        if error.errno not in _IRREPLACEABLE:
            raise
        _save_in_place(save, target)


def _save_in_place(save: Callable[[BinaryIO], None], path: Path) -> None:
    with path.open("wb") as file:  # Pillow would open it for reading too, which a pipe does not allow
        save(file)


def is_drawing(path: Path) -> bool:
    """Whether a file is a drawing that `save_drawing` wrote."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return _MARK in image.info.items()
    except Exception:  # whatever is wrong with the file, it is not a drawing
        return False


class _Layout:
    """Lengths in pixels, all derived from the size of a panel, and the typeface, as `_typeface` gives it."""

    def __init__(self, panel: int, words: int, typeface: str | None) -> None:
        self.panel = panel
        self.typeface = typeface
        self.columns = max(3, round((2 * words) ** 0.5))
        self.photo = round(1.6 * panel)
        self.gap = max(panel // 12, 4)
        self.word_size = max(panel // 13, 10)
        self.caption_size = max(panel // 10, 12)
        self.note_size = max(panel // 20, 9)
        self.bar = max(panel // 70, 2)

    def font(self, size: int) -> _Font:
        """The font of the caption and its words."""
        return _fonts.sized(self.typeface, size)

    def note_font(self, size: int) -> _Font:
        """The font of the percentages and the scale, Pillow's own: some alphabets' have no digits and Latin letters."""
        return _fonts.sized(None, size)


def _check(words: Sequence[str], attention: ArrayLike, probabilities: Sequence[float]) -> NDArray[np.float32]:
    shares, likelihoods = _numbers("attention", attention), _numbers("probabilities", probabilities)
    if not words and not shares.size and not likelihoods.size:
        return np.zeros((0, 1, 1), np.float32)
    if shares.ndim != 3 or len(shares) != len(words) or 0 in shares.shape[1:]:
        raise ArgumentError(
            "attention", f"has shape {shares.shape}", f"it must be [{len(words)} words, at least one row, and column]"
        )
    if not np.isfinite(shares).all() or (shares < 0).any():
        raise ArgumentError("attention", "has shares that are negative or not numbers", "pass what the decoder gave")
    if likelihoods.shape != (len(words),):
        raise ArgumentError(
            "probabilities", f"have shape {likelihoods.shape}", f"there must be one for each of {len(words)} words"
        )
    if not ((likelihoods >= 0) & (likelihoods <= 1.0001)).all():
        raise ArgumentError("probabilities", "are not all between 0 and 1", "pass exp(log-probability)")
    return shares


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float32]:
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, "is not an array of numbers", "pass what the caption has") from error


def _on_paper(parts: Sequence[tuple[Image.Image, int, int]], layout: _Layout) -> Image.Image:
    """Parts at their places, with a margin around all."""
    margin = 2 * layout.gap
    width = max(left + part.width for part, left, _ in parts) + 2 * margin
    height = max(top + part.height for part, _, top in parts) + 2 * margin
    paper = Image.new("RGB", (width, height), _PAPER)
    for part, left, top in parts:
        paper.paste(part, (margin + left, margin + top))
    return paper


def _photo_column(photo: Image.Image, caption: str, peak: float, layout: _Layout) -> Image.Image:
    """The photo as it is, the whole caption under it, and the scale of the heat maps."""
    width = max(photo.width, layout.panel, 14 * layout.note_size)  # the words of the scale need that much
    font, note = layout.font(layout.caption_size), layout.note_font(layout.note_size)
    lines = _wrap(caption, font, width)
    line_height = round(1.3 * layout.caption_size)
    caption_top = photo.height + layout.gap
    scale_top = caption_top + len(lines) * line_height + layout.gap
    scale_height = layout.note_size
    column = Image.new("RGB", (width, scale_top + scale_height + round(2.4 * layout.note_size)), _PAPER)
    column.paste(photo, ((width - photo.width) // 2, 0))
    draw = ImageDraw.Draw(column)
    for number, line in enumerate(lines):
        draw.text((0, caption_top + number * line_height), line, _INK, font)
    ramp = heat_colours(np.sqrt(np.linspace(0, 1, width, dtype=np.float32)))
    column.paste(Image.fromarray(np.broadcast_to(ramp, (scale_height, width, 3)).copy()), (0, scale_top))
    label_top = scale_top + scale_height + layout.note_size // 2
    draw.text((0, label_top), "0 %", _SOFT_INK, note)
    draw.text((width / 2, label_top), "share of attention", _SOFT_INK, note, anchor="ma")
    draw.text((width, label_top), _percent(peak), _SOFT_INK, note, anchor="ra")
    return column


def _word_panel(
    photo: Image.Image, word: str, share: NDArray[np.float32], probability: float, layout: _Layout
) -> Image.Image:
    """The photo under one word's heat, and below it the word and its probability, also as a bar."""
    width = max(photo.width, round(0.6 * layout.panel))
    panel = Image.new("RGB", (width, photo.height + round(2.4 * layout.word_size)), _PAPER)
    panel.paste(_heated(photo, share), ((width - photo.width) // 2, 0))
    draw = ImageDraw.Draw(panel)
    number, small = _percent(probability), layout.note_font(round(0.72 * layout.word_size))
    room = width - round(draw.textlength(number, font=small)) - layout.gap // 2
    baseline = photo.height + round(1.4 * layout.word_size)
    fitting, font = _fit(word, layout, room)
    draw.text((0, baseline), fitting, _INK, font, anchor="ls")
    draw.text((width, baseline), number, _SOFT_INK, small, anchor="rs")
    bar_top = baseline + round(0.5 * layout.word_size)
    draw.rectangle((0, bar_top, width - 1, bar_top + layout.bar), _TRACK)
    if (filled := round(width * probability)) > 0:
        draw.rectangle((0, bar_top, filled - 1, bar_top + layout.bar), _INK)
    return panel


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0095 else "<1 %"


# -- heat ---------------------------------------------------------------------------------------------------------


def _heated(photo: Image.Image, share: NDArray[np.float32]) -> Image.Image:
    """The photo in grey, lit in the colours of the heat where the model looked; share is 0 to 1."""
    heat = np.asarray(Image.fromarray(share).resize(photo.size, Image.Resampling.BICUBIC))
    level = np.sqrt(heat.clip(0, 1))
    grey = np.asarray(photo.convert("L"), np.float32)[..., None]
    veil = (0.35 + 0.35 * level)[..., None]  # cold places stay dim but visible, hot ones show the photo's detail
    return Image.fromarray(((1 - veil) * grey + veil * heat_colours(level)).round().astype(np.uint8))


def heat_colours(level: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours for levels from 0 to 1: dark violet, red, orange, pale yellow, in even steps of lightness.

    The colours lie on a curve in Oklab (B. Ottosson, "A perceptual color space for image processing", 2020), whose
    lightness grows linearly with the level, so that equal differences look equal, also without colour vision.

    Args:
        level: [...], 0 to 1.

    Returns:
        uint8 [..., 3], sRGB.
    """
    index = np.rint(np.asarray(level) * 255).astype(np.intp)
    return np.take(_heat_table(), index, axis=0)


@functools.cache
def _heat_table() -> NDArray[np.uint8]:
    level = np.linspace(0, 1, 256)
    hue = np.deg2rad(290 + 175 * level)  # violet, through magenta, red and orange, to yellow
    chroma = 0.085 + 0.03 * level + 0.088 * np.sin(np.pi * level)  # inside sRGB all the way
    # Oklab to linear sRGB as Ottosson gives it, then its samples.
    lightness, a, b = 0.18 + 0.77 * level, chroma * np.cos(hue), chroma * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    return encode_srgb(np.stack([red, green, blue], axis=-1).clip(0, 1))


# -- text ---------------------------------------------------------------------------------------------------------


_ALPHABETS_OF_NOTO = """
    Devanagari Bengali Gurmukhi Gujarati Oriya Tamil Telugu Kannada Malayalam Sinhala Thai Lao Khmer Myanmar Ethiopic
    Georgian Armenian Hebrew Arabic
    """.split()  # noqa: SIM905
_SYSTEM_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf", "Arial.ttf", "Arial Unicode.ttf"),
    *("NotoSansCJK-Regular.ttc", "msyh.ttc", "malgun.ttf", "PingFang.ttc"),
    *("Nirmala.ttc", "Nirmala.ttf", "LeelawUI.ttf"),
    *(f"NotoSans{alphabet}-Regular.ttf" for alphabet in _ALPHABETS_OF_NOTO),
)
"""Files in which Linux, Windows and macOS keep the letters of most languages; Pillow looks where each keeps fonts."""


def _typeface(letters: Iterable[str]) -> str | None:
    """The file of a font that has the letters; None for Pillow's own, which has ASCII's, and is better than no other.

    It is looked for only where there are other letters, so that usual captions are drawn alike everywhere. A font that
    has all letters is preferred to one of another alphabet that lacks ASCII's.
    """
    wanted = [letter for letter in letters if not letter.isspace()]
    others = [letter for letter in wanted if not letter.isascii()]
    if not others:
        return None
    return next((name for asked in (wanted, others) for name in _SYSTEM_FONTS if _has(name, asked)), None)


def _has(name: str, letters: Sequence[str]) -> bool:
    """Whether the system has the font, and the font the letters: one that it lacks looks like U+FFFF."""
    font = _fonts.of_system(name)
    return font is not None and _drawn(font, "\uffff") not in {_drawn(font, letter) for letter in letters}


def _system_font(name: str) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, 16)
    except (OSError, ImportError):
        return None


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _font(typeface: str | None, size: int) -> _Font:
    return ImageFont.load_default(size=size) if typeface is None else ImageFont.truetype(typeface, size)


class _Fonts(threading.local):
    """Fonts that have been read, each thread's own: without the GIL, Pillow before 12.2 crashes where two share one."""

    def __init__(self) -> None:
        self.of_system = functools.cache(_system_font)
        self.sized = functools.lru_cache(maxsize=16)(_font)


_fonts = _Fonts()


def _wrap(text: str, font: _Font, width: int) -> list[str]:
    """Lines of whole words no wider than `width`; a word that alone is wider has a line of its own, cut to fit."""
    lines: list[str] = []
    for word in (word[: width + 1] for word in text.split()):  # more letters than that never fit
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_cut(word, font, width))
    return lines


def _fit(word: str, layout: _Layout, width: int) -> tuple[str, _Font]:
    """The word and a font in which it is no wider than `width`: smaller by up to 40 %, then cut."""
    word = word[: width + 1]
    smallest = round(0.6 * layout.word_size)
    for size in range(layout.word_size, smallest, -1):
        if layout.font(size).getlength(word) <= width:
            return word, layout.font(size)
    return _cut(word, layout.font(smallest), width), layout.font(smallest)


def _cut(word: str, font: _Font, width: int) -> str:
    if font.getlength(word) <= width:
        return word
    fitting = bisect.bisect(
        range(1, len(word) + 1), float(width), key=lambda letters: font.getlength(f"{word[:letters]}...")
    )
    return f"{word[:fitting]}..."
