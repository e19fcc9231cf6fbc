"""Read a data set in the Flickr8k layout: a folder of images, a token file, and split lists.

The layout is the one Hodosh, Young and Hockenmaier (JAIR 2013) published and every tutorial uses::

    Flicker8k_Dataset/*.jpg        (the folder's name is theirs; `Images/` and `images/` are found too)
    Flickr8k.token.txt             <file>#<n>TAB<caption>
    Flickr_8k.trainImages.txt      one file name a line; likewise dev and test

Any other data set in that layout works the same. Malformed lines and missing images are reported by name and line,
counted, and left out: one bad line never costs the rest of the data set.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from caplet_export.errors import DataError
from caplet_export.text import SPECIALS

_TOKEN_LINE = re.compile(r"^(?P<name>[^\t]+)#(?P<number>\d+)\t(?P<caption>.*\S.*)$")
_OF_OTHERS = (r"</?s>", "<[bse]os>", r"\[(?:start|end|pad|unk)\]", r"\b(?:start|end)seq\b")
_CONTROL_TOKEN = re.compile("|".join([*map(re.escape, SPECIALS), *_OF_OTHERS]), re.IGNORECASE)
_IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Defect:
    """One thing wrong with the data set: its file and line (from 1), and why it was left out, or what it lacks."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, without its images: names, raw captions, and the defects that were left out.

    `captions` maps an image's file name to its captions, in file order; `splits` maps `train`, `dev` or
    `test` to the names of the images that are present and captioned.
    """

    images: Path
    captions: Mapping[str, Sequence[str]]
    splits: Mapping[str, Sequence[str]]
    defects: Sequence[Defect] = ()

    def path(self, name: str) -> Path:
        """Where the image of that name lies."""
        return self.images / name

    def split(self, name: str) -> Sequence[str]:
        """The image names of a split. Raises a DataError if the data set has no such list."""
        if name not in self.splits:
            raise DataError(f"the data set has no {name!r} split (it has: {', '.join(self.splits)})")
        return self.splits[name]


def read_captions(token_file: Path) -> tuple[dict[str, list[str]], dict[str, int], list[Defect]]:
    """Read a token file, of lines `<file>#<n>TAB<caption>`.

    `<start>`, `<end>`, `<pad>` and `<unk>`, which tutorials write into captions, are dropped: the decoder would take
    these words for its own special tokens. So is what other tutorials write for them, such as `startseq`. Captions come
    in Unicode's composed form, NFC: a word whose accents are characters of their own, as some programs write them,
    looks the same and would be another word. So would one with a capital İ, which Python makes small in two characters.

    Returns:
        captions by image name, in file order; the line number of each image's first caption; and as defects the lines
        of another form, those with the file and number of an earlier one, and the first that is not UTF-8.

    Raises:
        DataError: the file cannot be read, or has no line of that form.
    """
    captions: dict[str, list[str]] = {}
    first_lines: dict[str, int] = {}
    defects: list[Defect] = []
    seen: set[tuple[str, str]] = set()
    lines = _lines(token_file)
    if lossy := [number for number, line in lines if "\ufffd" in line]:
        more = f" and in {len(lossy) - 1} more lines" if len(lossy) > 1 else ""
        cause = f"letters that are not UTF-8 are lost here{more}; save the file as UTF-8"
        defects.append(Defect(token_file.name, lossy[0], cause))
    for number, line in lines:
        name, tab, caption = line.partition("\t")
        match = _TOKEN_LINE.match(f"{name}{tab}{_CONTROL_TOKEN.sub(' ', caption)}")
        if match is None:
            defects.append(Defect(token_file.name, number, f"not '<file>#<n>TAB<caption>': {_excerpt(line)}"))
            continue
        key = (match["name"], match["number"])
        if key in seen:
            defects.append(Defect(token_file.name, number, f"a second caption numbered {key[0]}#{key[1]}"))
            continue
        seen.add(key)
        first_lines.setdefault(match["name"], number)
        caption = unicodedata.normalize("NFC", match["caption"].strip()).replace("İ", "i")
        captions.setdefault(match["name"], []).append(caption)
    if not captions:
        raise DataError(f"{token_file}: no line of the form '<file>#<n>TAB<caption>'")
    return captions, first_lines, defects


def read_dataset(root: Path | str) -> Dataset:
    """Read the data set below `root`.

    Raises:
        DataError: the folder, its token file, its images, or every split list is missing; one of these files cannot be
            read; there are two token files, or two lists of one split; or nothing in it is usable.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    images = next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), None)
    if images is None:
        raise DataError(f"{root}: no image folder (looked for {', '.join(_IMAGE_FOLDERS)})")
    token_file = _token_file(root)
    captions, first_lines, defects = read_captions(token_file)
    present = {entry.name for entry in images.iterdir() if entry.is_file()}
    if not present and (folders := sorted(images.iterdir())):  # as some archives are packed
        raise DataError(f"{images}: holds no photos but the folder {folders[0].name!a}; move them up, out of it")
    names = sorted(present)
    alike = {_loose(_stem(name)): name for name in names} | {_loose(name): name for name in names}
    for name, number in first_lines.items():
        if name not in present:
            problem = f"captions of an image that is not there: {name}{_hint(name, alike)}"
            defects.append(Defect(token_file.name, number, problem))
    splits, unusable = _read_splits(root, images.name, present, alike, captions)
    defects += unusable
    if not splits:
        raise DataError(f"{root}: no split list (looked for *trainImages.txt, *devImages.txt, *testImages.txt)")
    if not any(splits.values()):
        reason = defects[-1].reason if defects else "they are empty"
        raise DataError(f"{root}: the split lists name no image that is present and captioned: {reason}")
    return Dataset(images, captions, splits, tuple(defects))


def _read_splits(
    root: Path, folder: str, present: Container[str], alike: Mapping[str, str], captions: Container[str]
) -> tuple[dict[str, list[str]], list[Defect]]:
    """The image names of each split that has a list, and the defects of the lists.

    Args:
        root: where the lists are.
        folder: name of the folder of images.
        present: names of the images in it.
        alike: these names, by what `_loose` makes of them, with and without their suffix.
        captions: names of the images with captions.
    """
    splits: dict[str, list[str]] = {}
    defects: list[Defect] = []
    owner: dict[str, str] = {}
    for split in SPLITS:
        found = _matching(root, f"*{split}Images.txt")
        if not found:
            continue
        split_list = _only(root, found, f"*{split}Images.txt")
        splits[split] = []
        for number, line in _lines(split_list):
            name = line.strip()
            if name not in present:
                problem = f"image is not in {folder}: {_excerpt(name)}{_hint(name, alike)}"
            elif name not in captions:
                problem = f"image has no caption: {name}"
            elif name in owner:
                problem = f"image is already in {owner[name]}: {name}"
            else:
                owner[name] = split
                splits[split].append(name)
                continue
            defects.append(Defect(split_list.name, number, problem))
    return splits, defects


def _token_file(root: Path) -> Path:
    matching = _matching(root, "*.token.txt")
    # Flickr8k also has a Flickr8k.lemma.token.txt: the words of its captions without their endings.
    found = [path for path in matching if path.name.count(".") == 2]
    if matching and not found:
        names = ", ".join(path.name for path in matching)
        raise DataError(f"{root}: {names}: captions are read from NAME.token.txt, with no other dot in its name")
    if not found:
        # Windows hides a second `.txt`, Flickr30k's file has none, and Kaggle's is called captions.txt.
        like = sorted(path.name for path in root.iterdir() if re.search(r"^(?!\.).*(token|caption)", path.name, re.I))
        there = f"; there is {like[0]!a}" if like else ""
        raise DataError(f"{root}: no files match *.token.txt; exactly one is needed{there}")
    return _only(root, found, "*.token.txt")


def _matching(root: Path, pattern: str) -> list[Path]:
    """The files of that pattern, without those that macOS puts beside them on other systems' drives (`._NAME`)."""
    return sorted(path for path in root.glob(pattern) if not path.name.startswith("._"))


def _only(root: Path, found: Sequence[Path], pattern: str) -> Path:
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{root}: {len(found)} files match {pattern} ({names}); exactly one is needed")
    return found[0]


def _lines(path: Path) -> list[tuple[int, str]]:
    """Non-empty lines with their numbers, from 1. Bytes that are not UTF-8 are replaced, so that one bad byte costs
    one caption a character and no more.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: in UTF-16; save the file as UTF-8")
    text = raw.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _loose(name: str) -> str:
    """An image's name without what may differ unseen: case, spaces around it, and how its accents are coded."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def _stem(name: str) -> str:
    """An image's name without its folders, also as Windows writes them, and its suffix: some lists name it so."""
    return PureWindowsPath(name).stem


def _hint(name: str, alike: Mapping[str, str]) -> str:
    there = alike.get(_loose(name)) or alike.get(_loose(_stem(name)))
    return f"; there is {there!a}" if there else ""


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
