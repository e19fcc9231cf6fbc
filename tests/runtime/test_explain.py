"""The drawing shows heat where the attention is, every word and probability, and the whole caption."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage import color as skimage_color

from caplet import explain
from caplet.errors import ArgumentError, ImageNotFoundError
from caplet.explain import heat_colours, is_drawing, plot_attention, save_drawing
from command_line import needs_links, needs_pipes

PHOTOS = Path(__file__).parents[1] / "photos"
GREY = 100  # no colour of `lit` in these tests is then near a half, which machines may round differently


def looking_at(*places: tuple[int, int]) -> NDArray[np.float32]:
    """Attention of one word for each place (row, column), nearly all of it there."""
    attention = np.full((len(places), 8, 8), 0.1 / 63, np.float32)
    for word, (row, column) in enumerate(places):
        attention[word, row, column] = 0.9
    return attention


def lit(level: float) -> NDArray[np.float64]:
    """The colour of GREY under a level of heat: with more heat, less of the photo shows through."""
    veil = 0.35 + 0.35 * level
    return np.rint((1 - veil) * GREY + veil * heat_colours(np.float32(level)))


def area(drawing: NDArray[np.uint8], colour: Any, left: int = 0) -> tuple[int, int, int, int]:
    """Left, top, width and height of the rectangle of that colour, the only one from `left` on."""
    rows, columns = np.nonzero((drawing[:, left:] == colour).all(axis=2))
    width, height = int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
    assert len(rows) == width * height
    return left + int(columns.min()), int(rows.min()), width, height


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Each text that is drawn, with its box; it may overlap no other, nor be cut off."""
    written, taken = [], []
    draw_text = ImageDraw.ImageDraw.text

    def spy(self: Any, xy: Any, text: str, fill: Any = None, font: Any = None, anchor: Any = None) -> None:
        box = self.textbbox(xy, text, font=font, anchor=anchor)
        assert box[0] >= -1 and box[2] <= self.im.size[0] + 1, f"{text!r} is cut off"
        assert box[3] <= self.im.size[1], f"{text!r} is cut off"
        for image, other, (left, top, right, bottom) in taken:
            apart = box[2] <= left or right <= box[0] or box[3] <= top or bottom <= box[1]
            assert image is not self.im or apart, f"{text!r} is written over {other!r}"
        taken.append((self.im, text, box))
        written.append((text, box))
        draw_text(self, xy, text, fill, font, anchor=anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return written


@pytest.mark.parametrize(
    ("photo", "large", "small", "column"), [((80, 40), (102, 51), (64, 32), 64), ((40, 80), (51, 102), (32, 64), 38)]
)
def test_every_pixel_is_where_it_belongs(
    photo: tuple[int, int], large: tuple[int, int], small: tuple[int, int], column: int, texts: list[Any]
) -> None:
    """Ten words in rows of four: the heat of each, one colour all over, and below it the word and its bar."""
    words = ["a", "dog", "jumps", "over", "the", "old", "fence", "made", "of", "wood"]
    levels, likelihoods = np.arange(30, 256, 25) / 255, np.arange(10) / 9
    grey = np.full((*photo[::-1], 3), GREY, np.uint8)
    attention = np.array([np.full((8, 8), level**2 / 2) for level in levels])
    drawing = np.asarray(plot_attention(grey, words, attention, likelihoods, panel=64))
    left, top, *size = area(drawing, (GREY, GREY, GREY))
    assert (left - top, tuple(size)) == ((126 - large[0]) // 2, large)
    panels = [area(drawing, lit(level), left + large[0]) for level in levels]
    step = [panels[number][axis] - panels[0][axis] for axis, number in enumerate((1, 4))]
    assert step[0] > column and step[1] > small[1] + 20
    first = panels[0][:2]
    assert first[1] == top
    assert panels == [
        (first[0] + number % 4 * step[0], first[1] + number // 4 * step[1], *small) for number in range(10)
    ]
    margin = (column - small[0]) // 2
    assert drawing.shape[1] == first[0] - margin + 3 * step[0] + column + top  # as much on the right as at the top
    ramp = heat_colours(np.sqrt(np.linspace(0, 1, 126, dtype=np.float32)))
    assert sum(row.tobytes() == ramp.tobytes() for row in drawing[:, top : top + 126]) == 9
    assert [text for text, _ in texts].count("50 %") == 1  # the largest share, at the end of the scale
    assert [text for text, _ in texts].count("share of attention") == 1

    def below(drawing: NDArray[np.uint8], panel: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        start, end = panel[0] - margin, panel[1] + panel[3]
        return drawing[end : end + 23, start : start + column]

    for word, likelihood, panel in zip(words, likelihoods, panels, strict=True):
        found = below(drawing, panel)
        alone = np.asarray(plot_attention(grey, [word], [[[0.2]]], [likelihood], panel=64))
        assert (found == below(alone, area(alone, lit(1), left + large[0]))).all()
        bar = found[(found < 250).all(axis=(1, 2))]
        assert len(bar) == 3 and ((bar < 100).all(axis=2).sum(axis=1) == round(column * likelihood)).all()


@pytest.mark.parametrize("place", [(0, 0), (0, 7), (7, 0), (7, 7), (2, 5), (6, 1)], ids=str)
def test_heat_is_where_the_attention_is(place: tuple[int, int]) -> None:
    grey = np.full((300, 400, 3), GREY, np.uint8)
    drawing = plot_attention(grey, ["there"], looking_at(place), [0.5], panel=160)
    left, top = panel_corner(drawing)
    panel = np.asarray(drawing, np.float64)[top : top + 120, left : left + 160]
    brightness = panel.sum(axis=2)
    assert lit(0).sum() - 3 <= brightness.min() and brightness.max() <= lit(1).sum() + 3
    assert len(np.unique(brightness)) > 50  # it fades out, without visible blocks
    rows, columns = np.nonzero(panel[..., 0] - panel[..., 2] > 60)
    assert abs(rows.mean() / 120 - (place[0] + 0.5) / 8) < 0.05
    assert abs(columns.mean() / 160 - (place[1] + 0.5) / 8) < 0.05


def panel_corner(drawing: Image.Image) -> tuple[int, int]:
    """Left and top of the first word's panel: the first column of ink after the gap beside the photo."""
    ink = np.any(np.asarray(drawing) < 250, axis=2)
    starts = np.flatnonzero(np.diff(ink.any(axis=0).astype(int)) == 1) + 1
    return int(starts[1]), int(np.argmax(ink.any(axis=1)))


def test_words_are_compared_on_one_scale() -> None:
    attention = np.concatenate([looking_at((3, 3)), np.full((1, 8, 8), 1 / 64, np.float32)])
    drawing = np.asarray(
        plot_attention(np.full((90, 90, 3), 128, np.uint8), ["one", "all"], attention, [1, 1], panel=90)
    )
    width = drawing.shape[1] // 2
    warmth = drawing[..., 0].astype(int) - drawing[..., 2]
    first, second = warmth[:, width:-110].max(), warmth[:, -100:].max()
    assert first > 2 * second


def test_every_word_its_probability_and_the_caption_are_written(texts: list[Any]) -> None:
    words = ["a", "dog", "jumps", "over", "a", "very", "tall", "fence", "made", "of", "wood"]
    probabilities = [0.9, 0.5, 0.123, 0.004, 1.00005, 0.33, 0.0096, 0.08, 0.61, 0.2, 0.999]
    plot_attention(np.zeros((80, 40, 3), np.uint8), words, looking_at(*[(1, 1)] * 11), probabilities)
    written = [text for text, _ in texts]
    for word in set(words):
        assert written.count(word) >= words.count(word)
    for percent in ("90 %", "50 %", "12 %", "<1 %", "33 %", "1 %", "8 %", "61 %", "20 %"):
        assert percent in written
    assert written.count("100 %") == 2
    lines = written[: written.index("0 %")]
    assert " ".join(lines) == " ".join(words) and len(lines) > 2
    font = ImageFont.load_default(size=28)
    for line, following in pairwise(lines):
        assert font.getlength(f"{line} {following.split()[0]}") > 280  # no line has room for another word


def test_the_caption_may_differ_from_the_words(texts: list[Any]) -> None:
    plot_attention(PHOTOS / "cat.jpg", ["the", "dog", "'s"], looking_at(*[(0, 0)] * 3), [1, 1, 1], caption="the dog's")
    assert texts[0][0] == "the dog's"


def test_words_too_long_are_made_to_fit(texts: list[Any]) -> None:
    words = ["extraordinarily", "w" * 100]
    plot_attention(PHOTOS / "rocket.jpg", words, looking_at((0, 0), (1, 1)), [0.5, 0.5], panel=120)
    written = [text for text, _ in texts]
    assert written.count("extraordinarily") == 2
    assert sum(text.endswith("...") for text in written) == 2  # in the caption and under its panel


def test_only_words_too_long_are_written_smaller(texts: list[Any]) -> None:
    words = ["dd", "d" * 22]
    plot_attention(PHOTOS / "rocket.jpg", words, looking_at((0, 0), (1, 1)), [0.5, 0.5])
    short, long = (next(box for text, box in reversed(texts) if text == word) for word in words)
    _, top, _, bottom = ImageFont.load_default(size=280 // 13).getbbox("dd")
    assert long[3] - long[1] < short[3] - short[1] == bottom - top


def test_a_word_of_megabytes_takes_no_longer_than_one_too_long(texts: list[Any]) -> None:
    start = time.thread_time()
    plot_attention(PHOTOS / "rocket.jpg", ["w" * 3_000_000], looking_at((0, 0)), [0.5], panel=120)
    assert time.thread_time() - start < 5
    assert sum(text.endswith("w...") for text, _ in texts) == 2


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12, 20, 50])
@pytest.mark.parametrize("photo", [(60, 40), (40, 60), (1, 1), (500, 3), (3, 500)], ids=str)
def test_any_number_of_words_and_any_shape_is_drawn(count: int, photo: tuple[int, int], texts: list[Any]) -> None:
    words = [f"word{number}" for number in range(count)]
    drawing = plot_attention(
        Image.new("RGB", photo, "navy"), words, looking_at(*[(4, 4)] * count), [0.5] * count, panel=96
    )
    assert drawing.mode == "RGB"
    assert {text for text, _ in texts} >= set(words)
    assert drawing.width * drawing.height < 60 * (count + 4) * 96 * 96 / 16


def test_up_to_three_words_are_side_by_side() -> None:
    photo = np.zeros((60, 90, 3), np.uint8)
    widths = [
        plot_attention(photo, ["word"] * count, looking_at(*[(4, 4)] * count), [0.5] * count, panel=96).width
        for count in (1, 2, 3, 4)
    ]
    assert widths[0] < widths[1] < widths[2] == widths[3]


def test_threads_share_no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the GIL, Pillow before 12.2 crashes where they do."""
    used: dict[int, list[Any]] = {}
    write = ImageDraw.ImageDraw.text

    def note(draw: Any, place: Any, text: str, fill: Any, font: Any, **options: Any) -> None:
        used.setdefault(threading.get_ident(), []).append(font)
        write(draw, place, text, fill, font, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    arguments = PHOTOS / "cat.jpg", ["word"], looking_at((2, 5)), [0.5]
    plot_attention(*arguments)
    with ThreadPoolExecutor(1) as executor:
        executor.submit(plot_attention, *arguments).result()
    mine, theirs = (set(map(id, fonts)) for fonts in used.values())
    assert mine and theirs and not mine & theirs


def test_a_caption_without_words_is_just_the_photo() -> None:
    drawing = plot_attention(PHOTOS / "cat.jpg", [], np.zeros((0, 8, 8)), [])
    assert drawing.width < 600
    attention_less = plot_attention(PHOTOS / "cat.jpg", [], [], [])
    assert attention_less.tobytes() == drawing.tobytes()


def test_the_photo_is_upright_and_in_its_proportions() -> None:
    image = Image.new("RGB", (80, 40), "white")
    image.paste((255, 0, 0), (0, 0, 40, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    pixels = np.asarray(plot_attention(image, [], [], [], panel=100))
    red = np.argwhere((pixels == (255, 0, 0)).all(axis=2))
    height, width = red.max(axis=0) - red.min(axis=0) + 1
    assert height == pytest.approx(width, abs=3)  # the upper half of a picture now twice as high as wide
    assert red.min(axis=0)[0] < 20


def test_colours_get_lighter_in_even_steps() -> None:
    table = heat_colours(np.linspace(0, 1, 256, dtype=np.float32))
    assert table.shape == (256, 3) and table.dtype == np.uint8
    lightness = skimage_color.rgb2lab(table[None] / 255)[0, :, 0]
    assert lightness[0] < 12 and lightness[-1] > 88
    violet, red, yellow = table[[32, 128, 255]].astype(int)
    assert violet[2] > violet[0] > violet[1] and red[0] > 2 * red[1:].max() and yellow[1] > yellow[2] + 50
    steps = np.diff(lightness[::16])
    assert abs(np.diff(table.astype(int), axis=0)).max() <= 3  # no edge in any channel either
    assert steps.min() > 0.6 * steps.mean() and steps.max() < 1.5 * steps.mean()


@pytest.mark.parametrize(
    ("words", "attention", "probabilities", "subject"),
    [
        (["a", "b"], np.ones((1, 8, 8)), [1, 1], "attention"),
        (["a"], np.ones((8, 8)), [1], "attention"),
        (["a"], np.ones((1, 0, 8)), [1], "attention"),
        (["a"], np.full((1, 8, 8), np.nan), [1], "attention"),
        (["a"], -np.ones((1, 8, 8)), [1], "attention"),
        (["a"], np.ones((1, 8, 8)), [], "probabilities"),
        (["a"], np.ones((1, 8, 8)), [-0.5], "probabilities"),
        (["a"], np.ones((1, 8, 8)), [1.001], "probabilities"),
        (["a", "b"], np.ones((2, 8, 8)), [0.5, 2], "probabilities"),
        (["a"], np.ones((1, 8, 8)), [np.nan], "probabilities"),
        (["a"], np.ones((1, 8, 8)), ["likely"], "probabilities"),
        (["a"], np.ones((1, 8, 8)), 1, "probabilities"),
        (["a"], [[[1], [1, 2]]], [1], "attention"),
        (["a"], None, [1], "attention"),
        (["a"], {}, [1], "attention"),
        (["a"], [], [], "attention"),
        ([], np.ones((1, 8, 8)), [], "attention"),
        ([], np.zeros((0, 8, 8)), [1], "probabilities"),
    ],
)
def test_parts_that_do_not_fit_are_argument_errors(
    words: list[str], attention: Any, probabilities: Any, subject: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        plot_attention(PHOTOS / "cat.jpg", words, attention, probabilities)
    assert caught.value.subject == subject


def test_panels_too_small_to_read_and_missing_photos_are_errors() -> None:
    for panel in (63, 4097, 1e9, "large", True):
        with pytest.raises(ArgumentError, match="panel"):
            plot_attention(PHOTOS / "cat.jpg", ["a"], looking_at((0, 0)), [1], panel=panel)  # type: ignore[arg-type]
    with pytest.raises(ImageNotFoundError):
        plot_attention(PHOTOS / "none.jpg", ["a"], looking_at((0, 0)), [1])


def test_a_panel_may_be_large() -> None:
    assert plot_attention(np.zeros((1, 99, 3), np.uint8), [], [], [], panel=4096).width > 1.6 * 4096


def test_attention_that_is_zero_everywhere_is_cold() -> None:
    drawing = plot_attention(np.full((90, 90, 3), GREY, np.uint8), ["a"], np.zeros((1, 8, 8)), [0], panel=90)
    assert area(np.asarray(drawing), lit(0))[2:] == (90, 90)


@needs_links
def test_a_drawing_on_its_way_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all can write, somebody may put one: neither a foreseeable name nor one met by chance is followed."""
    monkeypatch.setattr(os, "urandom", bytes)
    precious, drawing = tmp_path / "precious", Image.new("RGB", (9, 9))
    precious.write_text("kept")
    links = [tmp_path / f".caplet-{name}" for name in (os.getpid(), bytes(8).hex())]
    links[0].symlink_to(precious)
    save_drawing(drawing, tmp_path / "drawing.png")
    links[1].symlink_to(precious)
    with pytest.raises(FileExistsError):
        save_drawing(drawing, tmp_path / "drawing.png")
    assert precious.read_text() == "kept" and all(link.is_symlink() for link in links)


def test_a_drawing_may_have_the_longest_name(tmp_path: Path) -> None:
    save_drawing(Image.new("RGB", (9, 9)), file := tmp_path / f"a.{'b' * 250}")
    assert is_drawing(file)


@needs_pipes
def test_a_drawing_goes_where_a_link_leads_and_into_pipes(tmp_path: Path) -> None:
    drawing, link, pipe = Image.new("RGB", (9, 9)), tmp_path / "link.png", tmp_path / "pipe"
    link.symlink_to(tmp_path / "drawing.png")
    save_drawing(drawing, link)
    assert link.is_symlink() and is_drawing(tmp_path / "drawing.png")
    os.mkfifo(pipe)
    unnamed, written = os.pipe()
    for reader, target in ((os.open(pipe, os.O_NONBLOCK), pipe), (unnamed, Path(f"/dev/fd/{written}"))):
        save_drawing(drawing, target)
        assert os.read(reader, 9999) == link.read_bytes()
        os.close(reader)
    os.close(written)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "drawing.png", link, pipe]


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems have no such names, or they share the place in the file"
)
def test_a_drawing_goes_into_a_file_that_is_open(tmp_path: Path) -> None:
    """Whoever has it open would not see a file that replaced it; this one does not even have a name any more."""
    drawing = Image.new("RGB", (9, 9))
    save_drawing(drawing, tmp_path / "drawing.png")
    with (tmp_path / "open").open("w+b") as file:
        (tmp_path / "open").unlink()
        save_drawing(drawing, Path(f"/dev/fd/{file.fileno()}"))
        assert file.read() == (tmp_path / "drawing.png").read_bytes()
    assert list(tmp_path.iterdir()) == [tmp_path / "drawing.png"]


@pytest.mark.parametrize("why", [errno.EBUSY, errno.EACCES, errno.EROFS], ids=errno.errorcode.get)
def test_a_drawing_goes_into_a_file_that_cannot_be_replaced(
    why: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, one file mounted into a container, or a user who may write the file but not its folder."""
    target, drawing, open_path = tmp_path / "drawing.png", Image.new("RGB", (9, 9)), Path.open

    def refuse(path: Path, *arguments: Any) -> Any:
        if arguments == ("wb",):
            return open_path(path, "wb")
        raise OSError(why, os.strerror(why), str(path))

    target.write_bytes(b"longer than the new drawing" * 999)
    before = target.stat().st_ino
    monkeypatch.setattr(*((os, "replace") if why == errno.EBUSY else (Path, "open")), refuse)
    save_drawing(drawing, target)
    monkeypatch.undo()
    assert is_drawing(target) and target.stat().st_ino == before
    save_drawing(drawing, tmp_path / "new.png")
    assert target.read_bytes() == (tmp_path / "new.png").read_bytes()
    assert sorted(tmp_path.iterdir()) == [target, tmp_path / "new.png"]


def test_a_drawing_that_would_be_cut_off_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "drawing.png"
    save_drawing(Image.new("RGB", (9, 9)), target)
    before = target.read_bytes()

    def fill(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill)
    for path in (target, tmp_path / "new.png"):
        with pytest.raises(OSError, match="No space"):
            save_drawing(Image.new("RGB", (8, 8)), path)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_letters_that_pillows_own_font_lacks_are_drawn_with_one_of_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    # matplotlib brings both fonts: one of mathematical symbols, and one with letters of many alphabets.
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = ("not-there.ttf", str(folder / "cmsy10.ttf"), str(folder / "DejaVuSans.ttf"))

    def drawn(word: str) -> bytes:
        return plot_attention(PHOTOS / "cat.jpg", [word], looking_at((0, 0)), [0.5]).tobytes()

    monkeypatch.setattr(explain, "_SYSTEM_FONTS", fonts[:2])
    assert drawn("ö") == drawn("ж")  # boxes
    monkeypatch.setattr(explain, "_SYSTEM_FONTS", fonts)
    assert len({drawn("ö"), drawn("ж"), drawn("o")}) == 3


def test_a_font_without_latin_letters_writes_only_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Noto's fonts of Thai and Devanagari."""
    whole = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    alone = shutil.copy(whole, str(tmp_path / "alone.ttf"))
    write, used = ImageDraw.ImageDraw.text, {}

    def note(draw: Any, place: Any, text: str, fill: Any, font: Any, **options: Any) -> None:
        used[text] = getattr(font, "path", None)
        write(draw, place, text, fill, font, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    monkeypatch.setattr(explain, "_has", lambda name, letters: name == whole or not any(map(str.isascii, letters)))
    for fonts, word, expected in (
        ((alone, whole), "жук", alone),
        ((alone, whole), "bmx", whole),
        ((alone,), "bmx", alone),  # the others would be boxes instead
    ):
        monkeypatch.setattr(explain, "_SYSTEM_FONTS", fonts)
        plot_attention(PHOTOS / "cat.jpg", ["жук", word], looking_at((0, 0), (1, 1)), [0.5, 0.004])
        assert used[word] == expected
        assert {alone, whole}.isdisjoint(used[text] for text in ("0 %", "share of attention", "90 %", "50 %", "<1 %"))


def test_all_that_is_written_can_be_read_by_people_with_low_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text has a contrast of at least 4.5 (WCAG 2.2, 1.4.3)."""
    inks = set()
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *arguments, **_: inks.add(arguments[3]))
    plot_attention(PHOTOS / "cat.jpg", ["cat"], looking_at((0, 0)), [0.5])
    luminance = skimage_color.rgb2xyz(np.array([[explain._PAPER, *inks]], np.uint8))[0, :, 1]
    assert len(inks) == 2 and (luminance[0] + 0.05) / (luminance[1:].max() + 0.05) >= 4.5


def test_ascii_captions_are_drawn_alike_whatever_fonts_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(explain, "_has", lambda name, letters: asked.append(name) or True)
    plot_attention(PHOTOS / "cat.jpg", ["cat"], looking_at((0, 0)), [0.5])
    assert not asked
