"""Captions to words, words to ids: cleaning rules and the vocabulary."""

from __future__ import annotations

import reprlib
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from caplet_export.errors import ConfigurationError, DataError, in_one_line
from caplet_export.inputs import read_text
from caplet_export.outputs import write_whole
from caplet_export.tokenizer import BRACKETS, tokenize

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
START_TOKEN, END_TOKEN = SPECIALS[START], SPECIALS[END]
NEVER_SAID = (PAD, START, UNKNOWN)
"""Ids that no caption may hold, however likely a model finds them."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean(caption: str, rules: str) -> list[str]:
    """The words of a caption.

    `tutorial`: lower case; punctuation characters, then one-letter words, then words that are not all letters, dropped.
    `coco`: the words that the scorer sees (coco-caption's tokeniser). Dropped are words with a digit or an unprintable
    character, such as one of private use; words of nothing but marks, such as an accent by itself; brackets, which that
    tokeniser writes as "-lrb-" and the like; and "!!", "?!" and the like, of which it drops single marks only. "a" is
    kept: it is one word in seven of what people write, and every published score counts it.
    """
    if rules == "tutorial":
        words = caption.lower().translate(_NO_PUNCTUATION).split()
        return [word for word in words if len(word) > 1 and word.isalpha()]
    return [word for word in tokenize(caption) if _can_be_said(word)]


def has_digit(word: str) -> bool:
    """Whether a word has a digit, for which `clean` drops it under all rules."""
    return any(character.isdigit() for character in word)


def _can_be_said(word: str) -> bool:
    if not word.isprintable() or has_digit(word):
        return False
    if word in BRACKETS or not word.strip("!?"):
        return False
    return not all(unicodedata.category(character).startswith("M") for character in word)


class Vocabulary:
    """Words by id and ids by word; ids 0 to 3 are `<pad>`, `<start>`, `<end>` and `<unk>`.

    Raises:
        ConfigurationError: the words do not begin with those, or one is not printable, has a space or occurs twice.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        if tuple(self.words[: len(SPECIALS)]) != SPECIALS:
            found = in_one_line(" ".join(self.words[: len(SPECIALS)]))
            raise ConfigurationError(f"a vocabulary starts with {' '.join(SPECIALS)}, not {found}")
        for word in self.words:
            if not word or not word.isprintable() or " " in word:  # which no bundle may hold
                raise ConfigurationError(f"a vocabulary holds printable words without spaces, not {reprlib.repr(word)}")
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            word = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ConfigurationError(f"a vocabulary holds each word once, but {reprlib.repr(word)} is there twice")

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    @classmethod
    def build(cls, captions: Iterable[Sequence[str]], minimum_count: int) -> Vocabulary:
        """A vocabulary of words that occur at least `minimum_count` times, most frequent first, then by the alphabet.

        Raises:
            DataError: no word does.
        """
        counts = Counter(word for caption in captions for word in caption)
        kept = [word for word, count in counts.items() if count >= minimum_count]
        if not kept:
            often = max(counts, key=lambda word: counts[word], default="")
            cause = f"no word occurs {minimum_count} times in the training captions; most often: {reprlib.repr(often)}"
            raise DataError(f"{cause}; lower text.minimum_count, or insert the spaces that a language does not write")
        return cls([*SPECIALS, *sorted(kept, key=lambda word: (-counts[word], word))])

    def encode(self, words: Iterable[str]) -> list[int]:
        """Ids of words; that of `<unk>` for a word that it does not hold."""
        return [self._ids.get(word, UNKNOWN) for word in words]

    def decode(self, ids: Iterable[int], max_length: int | None = None) -> list[str]:
        """Words of ids before the first `<end>`, at most `max_length` of them, without padding and `<start>`."""
        words = []
        for number in ids:
            if number == END:
                break
            if number not in (PAD, START):
                words.append(self.words[number])
        return words[:max_length]

    def as_lines(self) -> str:
        """What `save` writes: one word a line; the line number, from 0, is the id."""
        return "".join(f"{word}\n" for word in self.words)

    def save(self, path: Path) -> None:
        """Write it as text; the old file stays until the new one is whole. Raises OSError."""
        write_whole(path, self.as_lines())

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote. Raises a ConfigurationError if it is anything else."""
        lines = read_text(path).split("\n")
        # An editor may have left out the last line's end.
        try:
            return cls(lines if lines[-1] else lines[:-1])
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from error
