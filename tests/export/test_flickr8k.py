"""The data reader: what is whole is read, what is broken is named, counted and left out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from caplet.errors import ImageError
from caplet.image import load_pixels
from caplet_export import photos
from caplet_export.errors import DataError
from caplet_export.flickr8k import read_captions, read_dataset
from caplet_export.photos import PhotoCache, photo_batches
from tiny_bundle import PHOTOS
from tiny_flickr8k import write_split, write_tiny_flickr8k


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny_flickr8k(tmp_path / "data")


def test_reads_photos_captions_and_splits(data: Path) -> None:
    dataset = read_dataset(data)
    assert [len(dataset.splits[split]) for split in ("train", "dev")] == [16, 4]
    assert dataset.defects == ()
    name = dataset.split("train")[0]
    assert len(dataset.captions[name]) == 5
    assert dataset.captions[name][0] == "A red square on a white wall ."
    assert dataset.path(name).is_file()


def test_a_split_that_is_not_there_is_said(data: Path) -> None:
    with pytest.raises(DataError, match=r"no 'test' split \(it has: train, dev\)"):
        read_dataset(data).split("test")


@pytest.mark.parametrize(
    "line",
    [
        "no tab at all",
        "photo.jpg\tno number",
        "photo.jpg#x\ta caption",
        "#0\ta caption",
        "photo.jpg#0\t   ",
        "photo.jpg#0\t<start> <end>",
        "a page without a tab" * 1000,
    ],
)
def test_a_malformed_line_is_named_with_its_number_and_skipped(data: Path, line: str) -> None:
    tokens = data / "Flickr8k.token.txt"
    lines = tokens.read_text().splitlines()
    tokens.write_text("\n".join([*lines[:7], line, *lines[7:]]) + "\n")
    dataset = read_dataset(data)
    (defect,) = dataset.defects
    assert (defect.file, defect.line) == (tokens.name, 8)
    shown = line if len(line) <= 60 else f"{line[:59]}…"
    assert defect.reason == f"not '<file>#<n>TAB<caption>': {shown!r}"
    assert sum(map(len, dataset.captions.values())) == 100


@pytest.mark.parametrize(
    "marked",
    ["<START> {}<end><pad>", "startseq {} endseq", "[START] {} [END]", "<sos> {}<EOS>", "<bos>{}<eos>", "<s> {} </s>"],
)
def test_tokens_of_the_decoder_are_no_words_of_a_caption(marked: str, data: Path) -> None:
    """Nor are those that tutorials write for their own decoders."""
    tokens = data / "Flickr8k.token.txt"
    expected = read_dataset(data).captions
    lines = [line.split("\t") for line in tokens.read_text().splitlines()]
    tokens.write_text("".join(f"{key}\t{marked.format(caption)}\n" for key, caption in lines))
    assert read_dataset(data) == dataclasses.replace(read_dataset(data), captions=expected, defects=())


def test_a_repeated_caption_number_is_skipped(data: Path) -> None:
    tokens = data / "Flickr8k.token.txt"
    tokens.write_text(tokens.read_text() + "0000_square.jpg#0\tAnother one .\n")
    dataset = read_dataset(data)
    assert [defect.line for defect in dataset.defects] == [101]
    assert len(dataset.captions["0000_square.jpg"]) == 5


def test_other_line_ends_a_byte_order_mark_and_bad_bytes_cost_nothing_else(data: Path) -> None:
    tokens = data / "Flickr8k.token.txt"
    raw = tokens.read_bytes().replace(b"\n", b"\r\n").replace(b"hangs", b"h\xffngs", 1)
    tokens.write_bytes(b"\xef\xbb\xbf" + raw)
    captions, _, defects = read_captions(tokens)
    told = "letters that are not UTF-8 are lost here; save the file as UTF-8"
    assert [str(defect) for defect in defects] == [f"{tokens.name}:3: {told}"]
    assert len(captions) == 20
    assert captions["0000_square.jpg"][2].startswith("A square , painted red , h")


def test_captions_in_another_encoding_are_said_once(data: Path) -> None:
    """They would be learned without their accents, which break words in two."""
    tokens = data / "Flickr8k.token.txt"
    tokens.write_text(tokens.read_text().replace("painted", "bemalt für"), encoding="cp1252")
    (defect,) = read_dataset(data).defects
    assert defect.line == 3
    assert defect.reason == "letters that are not UTF-8 are lost here and in 39 more lines; save the file as UTF-8"
    tokens.write_text(tokens.read_text(encoding="cp1252"), encoding="utf-8")
    assert not read_dataset(data).defects


@pytest.mark.parametrize("name", ["Flickr8k.token.txt", "Flickr_8k.devImages.txt"])
def test_a_file_in_utf_16_is_told_as_such(data: Path, name: str) -> None:
    """PowerShell's `>` and Excel's "Unicode text" write it."""
    (data / name).write_text((data / name).read_text(), encoding="utf-16")
    with pytest.raises(DataError, match=f"{name}: in UTF-16; save the file as UTF-8"):
        read_dataset(data)


def test_a_word_is_the_same_however_its_accents_are_coded(data: Path) -> None:
    tokens = data / "Flickr8k.token.txt"
    tokens.write_text("0000_square.jpg#0\tein süßes Tier\n0000_square.jpg#1\tein su\u0308ßes Tier\n", encoding="utf-8")
    captions, _, _ = read_captions(tokens)
    assert captions == {"0000_square.jpg": ["ein süßes Tier"] * 2}


def test_a_capital_dotted_i_is_an_i(data: Path) -> None:
    """`lower` makes two characters of it, and İki would be another word than iki."""
    tokens = data / "Flickr8k.token.txt"
    tokens.write_text("0000_square.jpg#0\tİki kedi\n0000_square.jpg#1\tI\u0307ki kedi\n", encoding="utf-8")
    captions, _, _ = read_captions(tokens)
    assert captions == {"0000_square.jpg": ["iki kedi"] * 2}


def test_a_photos_name_may_hold_what_numbers_its_captions(data: Path) -> None:
    tokens, photos = data / "Flickr8k.token.txt", data / "Flicker8k_Dataset"
    (photos / "0000_square.jpg").rename(photos / "no #0.jpg")
    for path in (tokens, data / "Flickr_8k.trainImages.txt"):
        path.write_text(path.read_text().replace("0000_square.jpg", "no #0.jpg"))
    dataset = read_dataset(data)
    assert dataset.defects == ()
    assert len(dataset.captions["no #0.jpg"]) == 5


PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
SCRIPT, *READERS = (part.partition("```")[0] for part in PAGE.partition("\n## 1. ")[0].split("```python\n")[1:])
"""The page's lines that make the layout of a CSV file, and those that read other files in its place."""


def test_the_pages_lines_make_the_layout_of_a_csv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Images").mkdir()
    for number in range(20):
        (tmp_path / "Images" / f"a, {number}.jpg").touch()
    texts = ('"A ""red"" dog,\nruns."', "Ein Hund, der läuft, bellt.")
    rows = [f'"a, {number}.jpg",{text}\r\n' for number in range(20) for text in texts]
    (tmp_path / "captions.txt").write_bytes("".join(["\ufeffimage,caption\r\n", *rows, "a 20.jpg\r\n"]).encode())
    monkeypatch.chdir(tmp_path)
    exec(SCRIPT, {})
    dataset = read_dataset(tmp_path)
    assert {split: len(names) for split, names in dataset.splits.items()} == {"train": 16, "dev": 2, "test": 2}
    assert set(map(tuple, dataset.captions.values())) == {('A "red" dog, runs.', "Ein Hund, der läuft, bellt.")}
    assert list(map(str, dataset.defects)) == [
        "my.token.txt:41: not '<file>#<n>TAB<caption>': 'a 20.jpg#0\\t'",
        "trainImages.txt:3: image is not in Images: 'a 20.jpg'",
    ]


FILES: list[tuple[str, Any]] = [
    (
        "results.csv",
        "image_name| comment_number| comment\n"
        '0.jpg| 0| Two young guys , "with" hair .\n0.jpg| 1   A dog runs .\n1.jpg| 0| A cat\u2028sits .\n',
    ),
    (
        "dataset_flickr30k.json",
        {
            "images": [
                {"filename": f"{number}.jpg", "split": split, "sentences": [{"raw": text} for text in texts]}
                for number, (split, texts) in enumerate(
                    [("train", ["A dog .", "Two\ndogs ."]), ("restval", ["A cat ."]), ("val", ["Süß"]), ("test", ["A"])]
                )
            ]
        },
    ),
    (
        "annotations/captions_train2017.json",
        {
            "images": [{"id": 7, "file_name": "0.jpg"}, {"id": 5, "file_name": "1.jpg"}],
            "annotations": [
                {"image_id": id, "caption": text} for id, text in ((5, "A cat ."), (7, "A dog ."), (7, "Two\ndogs ."))
            ],
        },
    ),
    (
        "annotations/captions_val2017.json",
        {"images": [{"id": 9, "file_name": "2.jpg"}], "annotations": [{"image_id": 9, "caption": "Süß"}]},
    ),
    ("images/0.txt", "A dog .\nTwo dogs .\n"),
    ("images/1.txt", "A cat\u2028sits ."),
    (
        "images/metadata.jsonl",
        '{"file_name": "0.jpg", "text": "A dog ."}\n{"file_name": "1.jpg", "text": "A cat\u2028sits."}\n'
        '{"file_name": "0.jpg", "text": "Two\\ndogs ."}\n',
    ),
]


@pytest.mark.parametrize(
    ("reader", "splits", "captions"),
    [
        (
            0,
            None,
            {"0.jpg": ['Two young guys , "with" hair .', "1 A dog runs ."], "1.jpg": ["A cat sits ."]},
        ),
        (
            1,
            {"train": ["0.jpg", "1.jpg"], "dev": ["2.jpg"], "test": ["3.jpg"]},
            {"0.jpg": ["A dog .", "Two dogs ."], "1.jpg": ["A cat ."], "2.jpg": ["Süß"], "3.jpg": ["A"]},
        ),
        (
            2,
            {"train": ["0.jpg", "1.jpg"], "dev": ["2.jpg"]},
            {"0.jpg": ["A dog .", "Two dogs ."], "1.jpg": ["A cat ."], "2.jpg": ["Süß"]},
        ),
        (3, None, {"0.jpg": ["A dog .", "Two dogs ."], "1.jpg": ["A cat sits ."]}),
        (4, None, {"0.jpg": ["A dog .", "Two dogs ."], "1.jpg": ["A cat sits."]}),
    ],
)
def test_the_pages_lines_make_the_layout_of_other_data_sets(
    reader: int,
    splits: dict[str, list[str]] | None,
    captions: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    for name, content in FILES:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for name in captions:
        (tmp_path / "images" / name).touch()
    monkeypatch.chdir(tmp_path)
    start, end = SCRIPT.index("# Read."), SCRIPT.index("# Split by photo")
    assert len(READERS) == 5
    exec(SCRIPT[:start] + READERS[reader] + SCRIPT[end:], {})
    dataset = read_dataset(tmp_path)
    assert dataset.captions == captions
    assert dataset.defects == ()
    if splits:
        assert dataset.splits == splits
    else:
        assert sorted(name for names in dataset.splits.values() for name in names) == sorted(captions)


def test_absent_uncaptioned_and_doubly_listed_images_are_named(data: Path) -> None:
    (data / "Flicker8k_Dataset" / "plain.jpg").write_bytes(b"")
    write_split(data, "dev", ["gone.jpg", "plain.jpg", "0000_square.jpg", "0019_square.jpg"])
    dataset = read_dataset(data)
    assert dataset.split("dev") == ["0019_square.jpg"]
    reasons = {defect.line: defect.reason for defect in dataset.defects if "dev" in defect.file}
    assert reasons[1].startswith("image is not in")
    assert reasons[2].startswith("image has no caption")
    assert reasons[3].startswith("image is already in train")


def test_captions_of_an_absent_image_are_reported(data: Path) -> None:
    tokens = data / "Flickr8k.token.txt"
    tokens.write_text(tokens.read_text() + "ghost.jpg.1#0\tA ghost .\nghost.jpg.1#1\tThe ghost .\n")
    (defect,) = read_dataset(data).defects
    assert str(defect) == "Flickr8k.token.txt:101: captions of an image that is not there: ghost.jpg.1"


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("süß.jpg", "su\u0308ß.jpg"),
        ("0000_square.jpg", "0000_Square.JPG"),
        ("a.jpg", " a.jpg"),
        ("a", "a.jpg"),
        ("a.jpg", "A.png"),
        ("/content/drive/My Drive/a.jpg", "a.jpg"),
        ("C:\\photos\\a.jpg", "a.jpg"),
    ],
)
def test_a_name_that_differs_only_in_what_is_easily_overlooked_is_told(data: Path, listed: str, there: str) -> None:
    tokens, photos = data / "Flickr8k.token.txt", data / "Flicker8k_Dataset"
    (photos / "0000_square.jpg").rename(photos / there)
    tokens.write_text(tokens.read_text().replace("0000_square.jpg", listed), encoding="utf-8")
    (data / "Flickr_8k.trainImages.txt").write_text(f"{listed}\n0001_square.jpg\n", encoding="utf-8")
    told = f"; there is {there!a}"
    assert [defect.reason for defect in read_dataset(data).defects] == [
        f"captions of an image that is not there: {listed}{told}",
        f"image is not in Flicker8k_Dataset: {listed!r}{told}",
    ]


@pytest.mark.parametrize(
    ("remove", "said"),
    [
        ("Flickr8k.token.txt", r"no files match \*\.token\.txt; exactly one is needed"),
        ("Flicker8k_Dataset", "no image folder"),
        ("splits", "no split list"),
        ("everything", "no such folder"),
    ],
)
def test_what_is_missing_altogether_is_an_error(data: Path, remove: str, said: str) -> None:
    if remove == "splits":
        for path in data.glob("*Images.txt"):
            path.unlink()
    elif remove == "everything":
        data = data / "nowhere"
    else:
        (data / remove).rename(data.parent / "aside")
    with pytest.raises(DataError, match=said):
        read_dataset(data)


@pytest.mark.parametrize("name", ["Flickr8k.token.txt.txt", "results_20130124.token", "captions.txt"])
def test_captions_under_another_name_are_told(data: Path, name: str) -> None:
    (data / "Flickr8k.token.txt").rename(data / name)
    with pytest.raises(DataError, match=rf": no files match \*\.token\.txt; exactly one is needed; there is '{name}'$"):
        read_dataset(data)


@pytest.mark.parametrize(("name", "pattern"), [("A_trainImages.txt", "trainImages"), ("A.token.txt", ".token")])
def test_a_second_file_of_a_kind_is_an_error(data: Path, name: str, pattern: str) -> None:
    (data / name).touch()
    with pytest.raises(DataError, match=rf"2 files match \*{pattern}\.txt \({name}, Flickr.*\); exactly one is needed"):
        read_dataset(data)


def test_what_macos_keeps_beside_files_is_none_of_them(data: Path) -> None:
    for name in ("Flickr8k.token.txt", "Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt"):
        (data / f"._{name}").write_bytes(b"\0\5\26\7")
    (data / "Flickr8k.token.txt").rename(data / "a.token.txt")
    assert len(read_dataset(data).splits) == 2


def test_photos_in_a_folder_within_their_folder_are_told(data: Path) -> None:
    (data / "Flicker8k_Dataset").rename(data / "photos")
    (data / "Images").mkdir()
    (data / "photos").rename(data / "Images" / "Images")
    with pytest.raises(DataError, match=r"Images: holds no photos but the folder 'Images'; move them up, out of it$"):
        read_dataset(data)


def test_lemmas_are_no_captions(data: Path) -> None:
    """Flickr8k comes with both."""
    (data / "Flickr8k.lemma.token.txt").write_text("0000_square.jpg#5\ta red square hang\n")
    assert len(read_dataset(data).captions["0000_square.jpg"]) == 5


def test_a_dot_too_many_in_the_name_is_said(data: Path) -> None:
    (data / "Flickr8k.token.txt").rename(data / "my.photos.token.txt")
    with pytest.raises(
        DataError, match=r"my\.photos\.token\.txt: captions are read from NAME\.token\.txt, with no other dot"
    ):
        read_dataset(data)


def test_lists_that_name_nothing_usable_are_an_error(data: Path) -> None:
    write_split(data, "train", ["gone.jpg"])
    write_split(data, "dev", [])
    with pytest.raises(DataError, match="no image that is present and captioned"):
        read_dataset(data)


def test_photos_come_in_batches_each_once_without_those_that_are_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = read_dataset(write_tiny_flickr8k(tmp_path / "data", train=18))
    broken, *whole = dataset.split("train")
    dataset.path(broken).write_bytes(b"no photo")
    batches = list(photo_batches(dataset, [*whole[:3], broken, *whole[3:]], size=(20, 10), task="read"))
    assert [name for names, _ in batches for name in names] == whole
    assert [len(names) for names, _ in batches] == [8, 8, 1]
    for names, pixels in batches:
        np.testing.assert_array_equal(pixels, [load_pixels(dataset.path(name), size=(20, 10)) for name in names])
    error = capsys.readouterr().err
    assert error.startswith(f"left out: {dataset.path(broken)}: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ((PHOTOS / "cat.jpg").read_bytes()[:9000], "the JPEG file is truncated; get a complete copy"),
        (b"P6 20000 20000 255\n", "too large: 20000x20000 is 400,000,000 pixels, the limit is 120,000,000; shrink it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL photo, which Pillow does not read; convert it to JPEG"),
    ],
    ids=["truncated", "large", "other"],
)
def test_no_remedy_is_advised_that_is_an_option_of_caplet_alone(
    content: bytes, told: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = read_dataset(data)
    path = dataset.path(dataset.split("dev")[0])
    path.write_bytes(content)
    assert photos.readable_photos(dataset, [path.name]) == []
    assert capsys.readouterr().err == f"left out: {path}: {told}\n"


def test_photos_are_kept_while_a_quarter_of_memory_holds_them(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "usable_memory", lambda: 4 * 2 * (10 * 10 * 3))
    monkeypatch.setattr(photos, "usable_threads", lambda: SimpleNamespace(count=1))
    dataset = read_dataset(data)
    names = dataset.split("dev")
    broken, *whole = names
    dataset.path(broken).write_bytes(b"no photo")
    cache = PhotoCache(dataset, names, 10)
    ((unreadable, problem),) = cache.unreadable.items()
    assert unreadable == broken and problem.startswith(f"{dataset.path(broken)}: ")
    assert cache.readable(names) == whole
    with pytest.raises(DataError, match="not one photo of a split could be read"):
        cache.readable([broken])
    expected = [load_pixels(dataset.path(name), size=(10, 10)) for name in reversed(whole)]
    np.testing.assert_array_equal(cache.load(whole[::-1]), expected)
    for name in whole:
        dataset.path(name).unlink()
    np.testing.assert_array_equal(cache.load(whole[1::-1]), expected[1:])
    with pytest.raises(ImageError):
        cache.load(whole[2:])
