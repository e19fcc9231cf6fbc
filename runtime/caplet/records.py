"""One record per photo, as text, JSON lines, CSV or TSV; and what an interrupted JSONL run has written already."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caplet.errors import ArgumentError, CapletError, printable

if TYPE_CHECKING:
    from caplet.captioner import Caption

FORMATS = ("text", "jsonl", "csv", "tsv")
FIELDS = (
    "path",
    "caption",
    "score",
    "words",
    "milliseconds",
    "model",
    "model_sha256",
    "beam_size",
    "max_length",
    "drawing",
    "error",
)
_RECORD_START = b'{"path": "'
_TSV_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_OBEYED = (*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
"""Control characters, which steer a terminal; Unicode's ends of lines, and its signs that turn text around: after one
of these in a name, the caption would be shown backwards."""
_LINE_ESCAPES = {code: printable(chr(code)) for code in _OBEYED}


@dataclass(frozen=True)
class Origin:
    """Where captions come from: a model and a search, the same for all captions in a file."""

    model: str
    model_sha256: str
    beam_size: int
    max_length: int


@dataclass(frozen=True)
class Record:
    """A photo's caption or error, with the model and the search that were used, and its drawing.

    Attributes:
        path: the photo.
        caption: None if it failed.
        origin: the model and the search.
        drawing: the file of its drawing, if there is one.
        problem: why there is no caption, or no drawing although one was asked for.
    """

    path: str
    caption: Caption | None
    origin: Origin
    drawing: Path | None
    problem: CapletError | None

    def fields(self) -> dict[str, Any]:
        """The members of the JSON object: those in FIELDS that apply, and the alternatives, which fit in no table."""
        fields: dict[str, Any] = {"path": self.path}
        if self.caption is not None:
            words = zip(self.caption.words, self.caption.word_scores, strict=True)
            fields["caption"] = self.caption.text
            fields["score"] = round(self.caption.score, 6)
            fields["words"] = [{"word": word, "log_prob": round(log_prob, 6)} for word, log_prob in words]
            fields["alternatives"] = [
                {"caption": other.text, "score": round(other.score, 6)} for other in self.caption.alternatives
            ]
            fields["milliseconds"] = round(self.caption.milliseconds, 3)
        fields |= vars(self.origin)
        if self.drawing is not None:
            fields["drawing"] = str(self.drawing)
        if self.problem is not None:
            fields["error"] = str(self.problem)
        return fields


def header(form: str) -> str:
    """What comes before the first record in this format, or an empty string."""
    return {"csv": ",".join(FIELDS) + "\n", "tsv": "\t".join(FIELDS) + "\n"}.get(form, "")


def as_line(record: Record, form: str, *, with_path: bool, on_terminal: bool) -> str:
    """The record as a line of this format; an empty string for an error in text, which stands on standard error only.

    Args:
        record: the record.
        form: one of FORMATS.
        with_path: whether text starts with the photo's path.
        on_terminal: whether tables are for eyes, too, so that a name in them must not steer the terminal.
    """
    if form == "text":
        if record.caption is None:
            return ""
        path = record.path.translate(_LINE_ESCAPES) + "\t" if with_path else ""
        return f"{path}{record.caption.text}\n"
    fields = record.fields()
    if form == "jsonl":
        # ASCII: bytes of a name that are not UTF-8 travel as lone surrogates, which json.loads understands.
        return json.dumps(fields) + "\n"
    if "words" in fields:
        fields["words"] = " ".join(f"{entry['word']}={entry['log_prob']}" for entry in fields["words"])
    escapes = (_TSV_ESCAPES if form == "tsv" else {}) | (_LINE_ESCAPES if on_terminal else {})
    columns = [str(fields.get(name, "")).translate(escapes) for name in FIELDS]
    if form == "tsv":
        return "\t".join(columns) + "\n"
    line = io.StringIO()
    csv.writer(line).writerow(columns)  # with another line terminator Pythons before 3.13 leave "\r" unquoted
    return line.getvalue().removesuffix("\r\n") + "\n"


@dataclass
class Written:
    """The records that a JSONL file holds, taken out photo by photo.

    Attributes:
        paths: how many records there are of each photo.
        errors: photos with a record that has an error.
        drawings: the files that were drawn.
        failed: whether a photo that was taken out is one of `errors`.
    """

    paths: Counter[str] = field(default_factory=Counter)
    errors: set[str] = field(default_factory=set)
    drawings: set[str] = field(default_factory=set)
    failed: bool = False

    def take(self, path: str) -> bool:
        """Take out a record of a photo, and say whether there was one."""
        if self.paths[path] == 0:
            return False
        self.paths[path] -= 1
        self.failed |= path in self.errors
        return True


def resume(path: str, origin: Origin) -> Written:
    """Read the records of an interrupted run and cut off a last line that is not whole.

    Raises:
        ArgumentError: the file holds something else, or captions of another model or search.
        OSError: it cannot be read or written.
    """
    written = Written()
    whole = 0
    with open(path, "r+b") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path} line {number}"
            if not line.endswith(b"\n"):
                if not _may_be_ours(line):
                    raise _not_ours(where)
                break
            record = _parse(line, where)
            if record["model_sha256"] != origin.model_sha256:
                raise ArgumentError("--resume", f"{path} was written with another model", "choose another -o FILE")
            # Records of caplet 0.9 and older do not say.
            beam_size = record.get("beam_size", origin.beam_size)
            max_length = record.get("max_length", origin.max_length)
            if (beam_size, max_length) != (origin.beam_size, origin.max_length):
                cause = f"{path} was written with --beam {beam_size} --max-length {max_length}"
                raise ArgumentError("--resume", cause, "give these, or another -o FILE")
            written.paths[record["path"]] += 1
            if "error" in record:
                written.errors.add(record["path"])
            if isinstance(drawing := record.get("drawing"), str):
                written.drawings.add(drawing)
            whole += len(line)
        file.truncate(whole)
    return written


def _may_be_ours(line: bytes) -> bool:
    """Whether a line without an end may be half a record, or what a power cut leaves of one: null bytes."""
    return line.startswith(_RECORD_START[: len(line)]) or not line.strip(b"\0")


def _not_ours(where: str) -> ArgumentError:
    return ArgumentError("--resume", f"{where} is not a record of caplet", "choose another -o FILE")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("path"), str) or "model_sha256" not in record:
        raise _not_ours(where)
    return record
