"""Cleaning rules and the vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from caplet_export.errors import ConfigurationError, DataError
from caplet_export.text import END, PAD, SPECIALS, START, UNKNOWN, Vocabulary, clean


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A child in a pink dress .", "child in pink dress"),
        ("Two dogs' tails , wagging !", "two dogs tails wagging"),
        ("A tri-colored dog", "tricolored dog"),
        ("Number 12 and no. 3b run", "number and no run"),
        ("a b c", ""),
        ('Man\'s best-friend; "Rex"', "mans bestfriend rex"),
    ],
)
def test_tutorial_rules(caption: str, words: str) -> None:
    assert clean(caption, "tutorial") == words.split()


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A child in a pink dress .", "a child in a pink dress"),
        ("A tri-colored dog , running !", "a tri-colored dog running"),
        ("The man's dog doesn't run", "the man 's dog does n't run"),
        ("Number 12 and 3b run", "number and run"),
        ("A dog \u200b runs\ue000", "a dog runs"),
        ("A bus (red) turns [left]", "a bus red turns left"),
        ("What a dog!! A cat?!?", "what a dog a cat"),
        ("I \u2764\ufe0f my dog \u0301 1\ufe0f\u20e3", "i \u2764 my dog"),
    ],
)
def test_coco_rules_are_the_scorers_tokens_that_a_caption_may_hold(caption: str, words: str) -> None:
    assert clean(caption, "coco") == words.split()


def test_vocabulary_orders_by_frequency_then_alphabet_after_the_specials() -> None:
    vocabulary = Vocabulary.build([["d", "b", "c"], ["c", "d"], ["a", "d"]], minimum_count=1)
    assert vocabulary.words == [*SPECIALS, "d", "c", "a", "b"]


def test_rare_words_become_unknown() -> None:
    vocabulary = Vocabulary.build([["dog", "runs"], ["dog"]], minimum_count=2)
    assert vocabulary.encode(["dog", "runs"]) == [4, UNKNOWN]
    assert "runs" not in vocabulary


def test_decoding_stops_at_the_end_and_skips_padding() -> None:
    vocabulary = Vocabulary.build([["dog", "runs"]], minimum_count=1)
    assert vocabulary.decode([START, 4, 5, END, 4, PAD]) == ["dog", "runs"]


def test_a_vocabulary_survives_its_file(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build([["dog", "'s", "café", "tri-colored"]], minimum_count=1)
    vocabulary.save(tmp_path / "vocabulary.txt")
    assert Vocabulary.load(tmp_path / "vocabulary.txt").words == vocabulary.words
    # An editor may have left out the last line's end, or put a byte order mark first.
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "vocabulary.txt").write_text("\n".join(vocabulary.words), encoding=encoding)
        assert Vocabulary.load(tmp_path / "vocabulary.txt").words == vocabulary.words


@pytest.mark.parametrize("lines", [["x " * 9000], [*SPECIALS, "x " * 9000], [*SPECIALS, "x" * 9000, "x" * 9000]])
def test_a_file_of_something_else_is_not_quoted_whole(lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(lines))
    with pytest.raises(ConfigurationError, match=r"words\.txt: a vocabulary [^\n]{20,290}$"):
        Vocabulary.load(tmp_path / "words.txt")


def test_a_vocabulary_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="starts with"):
        Vocabulary(["dog"])
    with pytest.raises(ConfigurationError, match="'dog' is there twice"):
        Vocabulary([*SPECIALS, "dog", "dog"])
    for word in ("\u200b", "hot dog", ""):
        (tmp_path / "words.txt").write_text("".join(f"{line}\n" for line in (*SPECIALS, word, "dog")))
        with pytest.raises(ConfigurationError, match=r"words\.txt: a vocabulary holds printable words"):
            Vocabulary.load(tmp_path / "words.txt")
    with pytest.raises(ConfigurationError, match="No such file"):
        Vocabulary.load(tmp_path / "vocabulary.txt")
    (tmp_path / "vocabulary.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        Vocabulary.load(tmp_path / "vocabulary.txt")
    with pytest.raises(DataError, match=r"no word occurs 3 .*; most often: 'dog'; lower text\.minimum_count, or"):
        Vocabulary.build([["a", "dog"], ["dog"]], minimum_count=3)
