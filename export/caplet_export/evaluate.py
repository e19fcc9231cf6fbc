"""Score a bundle on a split: the runtime's captions, as people get them, against references by coco-caption's rules.

Captions are written into a journal as they are made, so an interrupted evaluation goes on where it stopped. The result
is a JSON file (`Evaluation`) that holds every caption, so that it can be compared with another one later without
running anything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from caplet import Captioner
from caplet.errors import CapletError, ImageError
from caplet.machine import describe_cpu, versions
from caplet.manifest import Manifest
from caplet_export.bigrams import Bigrams
from caplet_export.errors import ConfigurationError, DataError, in_one_line, without_options
from caplet_export.flickr8k import Dataset
from caplet_export.metrics import (
    METRICS,
    TITLES,
    ImageStatistics,
    Interval,
    References,
    Scores,
    bigrams_of,
    bootstrap_interval,
    corpus_scores,
    human_scores,
    leave_one_out_scores,
    note_on_limit,
    references_of,
)
from caplet_export.outputs import lock_path, unlock_path, write_whole
from caplet_export.photos import check_storage
from caplet_export.progress import ProgressBar
from caplet_export.tokenizer import tokenize

SCORER = "caplet_export.metrics (equal to pycocoevalcap 1.2); CIDEr-D document frequencies from the split's references"
_FORMAT = 3
_TURN = 64
"""Photos that one beam captions before the next one does."""


@dataclass(frozen=True)
class CaptionRecord:
    """The runtime's caption of one photo: its text, its score (see `caplet.Caption`), and how long it took."""

    text: str
    score: float
    milliseconds: float


@dataclass(frozen=True)
class BeamResult:
    """Captions and scores of one beam size.

    `intervals` are 95% bootstrap intervals over images. `cider_d_by_score` is the mean CIDEr-D, in percent, of the
    fifth of the images whose captions have the lowest scores, of the next fifth, and so on (fewer values for fewer than
    five images). `leave_one_out` are corpus scores that can be compared with those of people, see
    `metrics.leave_one_out_scores`. `milliseconds` is the mean of `Caption.milliseconds`, under whatever load the
    machine had.
    """

    captions: Mapping[str, CaptionRecord]
    scores: Scores
    intervals: Mapping[str, Interval]
    cider_d_by_score: Sequence[float]
    leave_one_out: Mapping[str, float] | None
    milliseconds: float

    @classmethod
    def of(
        cls, captions: Mapping[str, CaptionRecord], references: References, bigrams: Bigrams | None = None
    ) -> BeamResult:
        """Score captions by image name against tokenised references of the same images."""
        hypotheses = {name: tokenize(record.text) for name, record in captions.items()}
        statistics = ImageStatistics.of(hypotheses, references)
        mean = sum(record.milliseconds for record in captions.values()) / len(captions)
        return cls(
            captions,
            corpus_scores(hypotheses, references, bigrams, statistics),
            bootstrap_interval(statistics),
            _by_score(captions, statistics),
            leave_one_out_scores(hypotheses, references),
            mean,
        )


@dataclass(frozen=True)
class Evaluation:
    """A bundle's captions of a split by beam size, their scores, and what they were made with."""

    bundle: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    results: Mapping[int, BeamResult]

    @property
    def images(self) -> set[str]:
        """The names of all images that were to be captioned, also of unreadable ones."""
        captioned = {name for result in self.results.values() for name in result.captions}
        return captioned | set(self.data["unreadable"])

    def save(self, path: Path) -> None:
        """Write the evaluation as JSON, whole or not at all. Raises a ConfigurationError if it cannot be written."""
        content = {"format": _FORMAT, "scorer": SCORER, **dataclasses.asdict(self)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be written ({error.strerror or error})") from error

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read what `save` wrote. Raises a ConfigurationError if the file is anything else."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ConfigurationError(f"{path}: written by another version of caplet-export; evaluate again")
            results = {int(beam): _result_from_json(result) for beam, result in content["results"].items()}
            bundle, data = content["bundle"], content["data"]
            settings, machine = content["settings"], content["machine"]
            if not isinstance(bundle["name"], str) or not isinstance(data["unreadable"], dict):
                raise TypeError("bundle or data")
            if not isinstance(settings, dict):
                raise TypeError("settings")
            return cls(bundle, data, settings, machine, results)
        except ConfigurationError:  # a ValueError too
            raise
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigurationError(f"{path}: not an evaluation written by caplet-export ({error})") from error


class CaptionJournal:
    """Captions by (beam size, image), appended to a JSONL file as they are made, and read back from it.

    The first line names the run (bundle digest, data, split, limit); a file of another run is begun anew. A last line
    that was cut short is dropped. Unreadable photos are not written down: the next run tries them again. Without a path
    the journal is in memory only.

    Raises:
        ConfigurationError: the file is damaged or cannot be written.
        ExportError: another process is writing to it.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any]) -> None:
        self.path = path
        self.captions: dict[tuple[int, str], CaptionRecord] = {}
        self.unreadable: dict[str, str] = {}
        self._file = None
        if path is None:
            return
        header = (json.dumps(run, sort_keys=True) + "\n").encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            lock_path(path)
            content = path.read_bytes()
            of_this_run = content.startswith(header)
            kept = content[: content.rindex(b"\n") + 1] if of_this_run else header
            for line in kept[len(header) :].splitlines():
                entry = json.loads(line)
                key = (entry.pop("beam"), entry.pop("image"))
                self.captions[key] = _record_from_json(entry)
            # A file of another run is emptied first: if the process is killed here, its captions must not be left under
            # this run's header.
            self._file = path.open("r+b" if of_this_run else "wb")
            self._file.write(kept)
            self._file.truncate()
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be written ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigurationError(f"{path}: damaged ({error}); delete it to start again") from error

    def __enter__(self) -> CaptionJournal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # it tries once more to write what `add` could not
                self._file.close()
        if self.path is not None:
            with suppress(OSError):  # deleted meanwhile
                unlock_path(self.path)

    def add(self, beam_size: int, name: str, record: CaptionRecord) -> None:
        """Keep one caption, on disk too. Raises a ConfigurationError if it cannot be written."""
        self.captions[beam_size, name] = record
        if self._file is not None:
            line = json.dumps({"beam": beam_size, "image": name, **dataclasses.asdict(record)}, ensure_ascii=False)
            try:
                self._file.write(f"{line}\n".encode())
                self._file.flush()
            except OSError as error:
                raise ConfigurationError(f"{self.path}: cannot be written ({error.strerror or error})") from error


def evaluate(
    bundle_path: Path | None,
    dataset: Dataset,
    split: str,
    *,
    beam_sizes: Sequence[int] = (),
    limit: int | None = None,
    threads: int | None = None,
    journal_path: Path | None = None,
) -> Evaluation:
    """Caption a split through the runtime and score it.

    Args:
        bundle_path: a bundle's directory; None as for `caplet.Captioner`.
        dataset: captions and splits.
        split: name of the split.
        beam_sizes: beams, of which each has its result; none for the bundle's default.
        limit: only the first so many images of the split. CIDEr-D then takes its document frequencies from them alone.
        threads: for the runtime; None lets it choose.
        journal_path: where captions are kept until the evaluation is saved; None keeps them in memory.

    Raises:
        CapletError: the bundle or a beam size cannot be used. Unreadable photos are left out and listed instead.
        ConfigurationError: the journal is damaged or cannot be written.
        ExportError: another process is writing to the journal.
        DataError: the split is missing or empty, none of its photos can be read, or the storage fails that they are on.
    """
    captioner = Captioner(bundle_path, threads=threads)
    bundle = captioner.bundle
    beam_sizes = list(dict.fromkeys(beam_sizes)) or [bundle.manifest.decoding.beam_size]
    names = dataset.split(split)
    limit = None if limit is None or limit >= len(names) else limit
    names = names[:limit]
    if not names:
        raise DataError(f"{dataset.images.parent}: no image of the {split!r} split can be used")
    run = {"bundle": bundle.digest, "data": str(dataset.images.resolve()), "split": split, "limit": limit}
    with CaptionJournal(journal_path, run) as journal:
        _caption(captioner, dataset, names, beam_sizes, journal)
    readable = [name for name in names if name not in journal.unreadable]
    if not readable:
        first, reason = next(iter(journal.unreadable.items()))
        raise DataError(f"none of {len(names)} photos can be read; the first: {first}: {reason}")
    references = references_of(dataset, readable)
    bigrams = bigrams_of(dataset, apart_from=split)
    decoding = json.loads(json.dumps(vars(bundle.manifest.decoding)))  # lists for tuples, as an evaluation is read back
    return Evaluation(
        bundle={
            "name": bundle.manifest.name,
            "path": str(bundle.path),
            "digest": bundle.digest,
            "sha256": _hashes(bundle.manifest),
        },
        data={
            "root": str(dataset.images.parent.resolve()),
            "split": split,
            "images": len(readable),
            "human": human_scores(references),
            "unreadable": {name: journal.unreadable[name] for name in names if name in journal.unreadable},
        },
        settings={"limit": limit, "threads": captioner.threads, **decoding},
        machine={"cpu": describe_cpu(), "packages": versions()},
        results={
            beam: BeamResult.of({name: journal.captions[beam, name] for name in readable}, references, bigrams)
            for beam in beam_sizes
        },
    )


def statistics_of(captions: Mapping[str, CaptionRecord], references: References) -> ImageStatistics:
    """Per-image statistics of captions by image name."""
    return ImageStatistics.of({name: tokenize(record.text) for name, record in captions.items()}, references)


def _by_score(captions: Mapping[str, CaptionRecord], statistics: ImageStatistics) -> list[float]:
    order = np.argsort([captions[name].score for name in statistics.keys], kind="stable")
    fifths = np.array_split(100 * statistics.cider_d[order], 5)
    return [float(fifth.mean()) for fifth in fifths if len(fifth)]


def format_table(evaluation: Evaluation) -> str:
    """The scores by beam size as a plain text table; CIDEr-D and BLEU-4 have their intervals."""
    data = evaluation.data
    *bleu_titles, rouge_title, cider_title = TITLES.values()
    columns = ["beam", *bleu_titles, "95%", rouge_title, cider_title, "95%"]
    rows = [[*columns, "length", "vocabulary", "rep. 3-grams", "dangling", "odd pairs", "ms/photo"]]
    for beam, result in evaluation.results.items():
        scores, bleu, cider = result.scores, result.intervals["bleu_4"], result.intervals["cider_d"]
        cells = [
            str(beam),
            *(f"{getattr(scores, name):.1f}" for name in METRICS[: len(bleu_titles)]),
            f"{bleu.low:.1f}-{bleu.high:.1f}",
        ]
        cells += [f"{scores.rouge_l:.1f}", f"{scores.cider_d:.1f}", f"{cider.low:.1f}-{cider.high:.1f}"]
        cells += [f"{scores.mean_length:.1f}", str(scores.vocabulary_used), f"{scores.repeated_trigram_share:.1f}%"]
        odd = scores.implausible_bigram_share
        cells += [f"{scores.dangling_ending_share:.1f}%", "-" if odd is None else f"{odd:.1f}%"]
        rows.append([*cells, f"{result.milliseconds:.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    part = note_on_limit(evaluation.settings["limit"])
    title = f"{evaluation.bundle['name']} on {data['images']} {data['split']} photos{part}"
    return "\n".join([title, *lines])


def _caption(
    captioner: Captioner, dataset: Dataset, names: Sequence[str], beam_sizes: Sequence[int], journal: CaptionJournal
) -> None:
    """Fill the journal with captions of the photos that it does not hold yet.

    The beams take turns, as a machine's speed changes within minutes and the card compares their times.
    """
    turns = [names[start : start + _TURN] for start in range(0, len(names), _TURN)]
    with ProgressBar(total=len(names) * len(beam_sizes), unit="caption", leave=True) as progress:
        for turn, beam_size in product(turns, beam_sizes):
            wanted = [name for name in turn if (beam_size, name) not in journal.captions]
            progress.update(len(turn) - len(wanted))
            paths = [dataset.path(name) for name in wanted]
            captions = captioner.caption_many(paths, beam_size=beam_size, on_error="return")
            for name, caption in zip(wanted, captions, strict=True):
                if isinstance(caption, ImageError):
                    check_storage(dataset, caption)
                    journal.unreadable[name] = str(without_options(caption))
                elif isinstance(caption, CapletError):  # the graphs failed, so the evaluation cannot go on
                    raise caption
                else:
                    record = CaptionRecord(caption.text, caption.score, round(caption.milliseconds, 2))
                    journal.add(beam_size, name, record)
                progress.update()


def _record_from_json(content: Mapping[str, Any]) -> CaptionRecord:
    """A caption from JSON. Raises a TypeError if it is not one."""
    record = CaptionRecord(**content)
    kinds: dict[str, tuple[type, ...]] = {"text": (str,), "score": (int, float), "milliseconds": (int, float)}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise TypeError(f"{name}: {in_one_line(content[name])}")
    return record


def _result_from_json(content: Mapping[str, Any]) -> BeamResult:
    captions = {name: _record_from_json(record) for name, record in content["captions"].items()}
    if not captions:
        raise TypeError("captions")
    return BeamResult(
        captions=captions,
        scores=Scores(**content["scores"]),
        intervals={name: Interval(**interval) for name, interval in content["intervals"].items()},
        cider_d_by_score=content["cider_d_by_score"],
        leave_one_out=content["leave_one_out"],
        milliseconds=content["milliseconds"],
    )


def _hashes(manifest: Manifest) -> dict[str, str]:
    """The sha256, by role, of the files on which captions depend."""
    files = {"encoder": manifest.encoder_file, "decoder": manifest.decoder_file, "vocabulary": manifest.vocabulary_file}
    return {role: manifest.files[file].sha256 for role, file in files.items()}
