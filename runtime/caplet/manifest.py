"""`manifest.json`: what a bundle says about itself, read strictly. Nothing in it is believed before it is checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from caplet.errors import BundleError

FORMAT_VERSION = 3
_OLDEST_VERSION = 1
_WITH_REPEATABLE, _WITH_FORMS = 2, 3  # the versions that brought these members of `decoding`, and nothing else
FIRST_WORD = 4  # ids below are those of the special tokens
LONGEST_CAPTION = 1000  # words; a limit for `max_length`, far above any sentence
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class FileEntry:
    """Size and hash that a file of the bundle must have."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Decoding:
    """How captions are searched and written unless the caller says otherwise.

    Attributes:
        beam_size: hypotheses kept per step; 1 is greedy search.
        max_length: most words of a caption.
        length_penalty: a hypothesis' log-probability is divided by its length to this power.
        block_repeated_trigrams: never say the same three words in a row twice.
        repeatable: ids of the words, and of the pairs of words in a row, that may be said more than once; all others
            only once. None allows all.
        forms: ids of words, of what to write for them, and of the words that this stands before ("a", "an", "orange").
    """

    beam_size: int
    max_length: int
    length_penalty: float
    block_repeated_trigrams: bool
    repeatable: tuple[tuple[int, ...], ...] | None = None
    forms: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Golden:
    """A photo of the bundle, and the caption that the bundle gave for it where it was made."""

    file: str
    source: str
    text: str
    score: float
    beam_size: int


@dataclass(frozen=True)
class Manifest:
    """The checked contents of `manifest.json`; file names are relative to the bundle and stay inside it.

    `saturates`: a graph may have 8-bit weights whose sums need exact kernels on x86 without VNNI.
    """

    name: str
    created_with: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    encoder_file: str
    decoder_file: str
    saturates: bool
    vocabulary_file: str
    vocabulary_size: int
    height: int
    width: int
    specials: tuple[str, str, str, str]
    decoding: Decoding
    license: Mapping[str, str]
    provenance: Mapping[str, Any]
    metrics: Mapping[str, Any]
    golden: tuple[Golden, ...]

    def __hash__(self) -> int:
        return hash((self.name, self.decoding, self.golden))  # what is a dictionary has no hash


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Parse and check `manifest.json`.

    Args:
        content: the file's bytes.
        where: its path, for messages.

    Raises:
        BundleError: not JSON, another format version, a field missing, of the wrong type or out of range, a file
            name that leaves the bundle, a file that is used but not listed under "files".
    """
    try:
        data = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BundleError(where, f"not a JSON file ({reason})", "get the bundle again") from None
    if not isinstance(data, dict):
        raise BundleError(where, "not a JSON object", "get the bundle again")
    top = _Fields(data, "", where)
    version = top.integer("format_version", 0, 2**31)
    if not _OLDEST_VERSION <= version <= FORMAT_VERSION:
        remedy = "upgrade caplet" if version > FORMAT_VERSION else "export the bundle again"
        raise BundleError(
            where, f"format_version is {version}, this caplet reads {_OLDEST_VERSION} to {FORMAT_VERSION}", remedy
        )
    files = top.fields("files")
    graphs, vocabulary = top.fields("graphs"), top.fields("vocabulary")
    words = vocabulary.integer("size", 5, 2**24)
    encoder, decoder = graphs.fields("encoder"), graphs.fields("decoder")
    for graph in (encoder, decoder):
        graph.integer("opset", 1, 2**31 - 1)  # for people; nothing here depends on it
    manifest = Manifest(
        name=top.label("name"),
        created_with=top.fields("created_with").data,
        files={files.checked_file_name(name): _file_entry(files.fields(name)) for name in files.data},
        encoder_file=encoder.file("file"),
        decoder_file=decoder.file("file"),
        # A list, so that both are checked, whatever the first says.
        saturates=True in [graph.flag("saturates", True) for graph in (encoder, decoder)],
        vocabulary_file=vocabulary.file("file"),
        vocabulary_size=words,
        **_image_size(top.fields("preprocessing")),
        specials=_specials(top.fields("tokens")),
        decoding=_decoding(top.fields("decoding"), words, version),
        license=_license(top.fields("license")),
        provenance=top.fields("provenance").data,
        metrics=top.fields("metrics").data,
        golden=tuple(_golden(entry) for entry in top.entries("golden")),
    )
    used = [manifest.encoder_file, manifest.decoder_file, manifest.vocabulary_file]
    for file in [*used, *(golden.file for golden in manifest.golden)]:
        if file not in manifest.files:
            top.fail("files", f"does not list {file!r}")
    return manifest


class _Fields:
    """A JSON object whose members are read by type; every complaint names the member by its path."""

    def __init__(self, data: dict[str, Any], path: str, where: str) -> None:
        self.data, self._path, self._where = data, path, where

    def fail(self, key: str, cause: str) -> NoReturn:
        raise BundleError(self._where, f"{self._path}{key} {cause}", "get or export the bundle again")

    def _get(self, key: str) -> Any:
        if key not in self.data:
            self.fail(key, "is missing")
        return self.data[key]

    def fields(self, key: str) -> _Fields:
        value = self._get(key)
        if not isinstance(value, dict):
            self.fail(key, "is not an object")
        return _Fields(value, f"{self._path}{key}.", self._where)

    def entries(self, key: str) -> list[_Fields]:
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self.fail(key, "is not a list of objects")
        return [_Fields(entry, f"{self._path}{key}[{i}].", self._where) for i, entry in enumerate(value)]

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            self.fail(key, "is not a string")
        return value

    def label(self, key: str) -> str:
        """A string that can stand in a table: 1 to 200 printable characters."""
        value = self.text(key)
        if not value.isprintable() or not 1 <= len(value) <= 200:
            self.fail(key, "is not a printable string of 1 to 200 characters")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._get(key)
        if type(value) is not int or not low <= value <= high:
            self.fail(key, f"is not a whole number from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self._get(key)
        if type(value) not in (int, float) or not low <= value <= high:
            self.fail(key, f"is not a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._get(key) if default is None else self.data.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, "is not true or false")
        return value

    def ngrams(self, key: str, *, longest: int, words: int) -> tuple[tuple[int, ...], ...] | None:
        """Tuples of 1 to `longest` ids of words, each below `words`; None for null."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(_are_ids(entry, range(words), 1, longest) for entry in value):
            self.fail(key, f"is neither null nor a list of lists of 1 to {longest} ids below {words}")
        return tuple(map(tuple, value))

    def triples(self, key: str, *, low: int, words: int) -> tuple[tuple[int, int, int], ...]:
        """Triples of ids of words, each from `low` to below `words`, no two with the same first and last."""
        value = self._get(key)
        if not isinstance(value, list) or not all(_are_ids(entry, range(low, words), 3, 3) for entry in value):
            self.fail(key, f"is not a list of lists of 3 ids from {low} to {words - 1}")
        if len({(word, following) for word, _, following in value}) < len(value):
            self.fail(key, "has two forms of a word before the same word")
        return tuple((word, form, following) for word, form, following in value)

    def file(self, key: str) -> str:
        return self.checked_file_name(self.text(key), key)

    def checked_file_name(self, name: str, key: str = "") -> str:
        """`name`, if it is a relative path with forward slashes that stays inside the bundle on any system."""
        parts = name.split("/")
        if not name.isprintable() or "\\" in name or _DRIVE.match(name) or any(p in ("", ".", "..") for p in parts):
            self.fail(key, f"{name!r} is not a file inside the bundle")
        return name


def _are_ids(entry: Any, ids: range, shortest: int, longest: int) -> bool:
    return (
        isinstance(entry, list)
        and shortest <= len(entry) <= longest
        and all(type(number) is int and number in ids for number in entry)
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _file_entry(fields: _Fields) -> FileEntry:
    digest = fields.text("sha256")
    if not _SHA256.fullmatch(digest):
        fields.fail("sha256", "is not 64 lower-case hexadecimal digits")
    return FileEntry(bytes=fields.integer("bytes", 0, 2**31 - 1), sha256=digest)


def _image_size(fields: _Fields) -> dict[str, int]:
    """The photo's size in front of the encoder; the rest of the preprocessing is fixed in this format version."""
    for key, value in {"color": "RGB", "dtype": "uint8", "resize": "squash", "resample": "bilinear"}.items():
        if fields.text(key) != value:
            fields.fail(key, f"is not {value!r}")
    return {"height": fields.integer("height", 1, 4096), "width": fields.integer("width", 1, 4096)}


def _specials(fields: _Fields) -> tuple[str, str, str, str]:
    return fields.text("pad"), fields.text("start"), fields.text("end"), fields.text("unknown")


def _decoding(fields: _Fields, words: int, version: int) -> Decoding:
    return Decoding(
        beam_size=fields.integer("beam_size", 1, 1000),
        max_length=fields.integer("max_length", 1, LONGEST_CAPTION),
        length_penalty=fields.number("length_penalty", 0.0, 10.0),
        block_repeated_trigrams=fields.flag("block_repeated_trigrams"),
        repeatable=fields.ngrams("repeatable", longest=2, words=words) if version >= _WITH_REPEATABLE else None,
        forms=fields.triples("forms", low=FIRST_WORD, words=words) if version >= _WITH_FORMS else (),
    )


def _license(fields: _Fields) -> dict[str, str]:
    fields.text("weights"), fields.text("data")
    return {key: fields.text(key) for key in fields.data}


def _golden(fields: _Fields) -> Golden:
    return Golden(
        file=fields.file("file"),
        source=fields.text("source"),
        text=fields.text("text"),
        score=fields.number("score", -1e9, 1e9),
        beam_size=fields.integer("beam_size", 1, 1000),
    )
