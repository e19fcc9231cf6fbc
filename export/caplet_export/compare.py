"""Compare two captioners photo by photo: which captions changed, and whether the difference may be chance.

The report is Markdown with thumbnails. It is never written into a repository, as the photos of a data set are not ours
to publish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from caplet.errors import ImageError
from caplet.image import load_picture
from caplet_export.errors import ConfigurationError, DataError, ExportError
from caplet_export.evaluate import Evaluation, statistics_of
from caplet_export.flickr8k import Dataset
from caplet_export.metrics import TITLES, Interval, note_on_limit, paired_bootstrap, references_of, signed
from caplet_export.outputs import check_place, foreign, write_whole

_THUMBNAIL = 224
_TITLE = "# A and B, photo by photo"
_REPORT, _THUMBNAILS = "report.md", "thumbnails"


@dataclass(frozen=True)
class Change:
    """A photo that the two caption differently; `gain` is the second's CIDEr-D less the first's, in percent."""

    image: str
    first: str
    second: str
    gain: float


@dataclass(frozen=True)
class Comparison:
    """Two results on the same photos.

    Attributes:
        names: of the two, with their beams.
        photos: how many.
        limit: the number given by `--limit`, if they are only the first of a split.
        scores: the corpus scores of each, by metric, in percent.
        differences: second minus first by metric, in percentage points, with 95% paired bootstrap intervals.
        changes: every photo whose caption changed, in the order of gains, the largest loss first.
    """

    names: tuple[str, str]
    photos: int
    limit: int | None
    scores: tuple[Mapping[str, float], Mapping[str, float]]
    differences: Mapping[str, Interval]
    changes: Sequence[Change]


def compare(
    first: Evaluation,
    second: Evaluation,
    dataset: Dataset,
    *,
    beams: tuple[int | None, int | None] = (None, None),
) -> Comparison:
    """Compare two evaluations of the same images, both scored anew against the captions of the data set.

    Args:
        first: the evaluation to compare with.
        second: the evaluation that is compared.
        dataset: the data set that both were evaluated on.
        beams: the beam of each that is compared; None for an evaluation that has only one.

    Raises:
        ConfigurationError: the evaluations are of different images, or do not have these beams.
        DataError: the data set has no captions of an image.
    """
    evaluations = (first, second)
    chosen = [
        choose_beam(evaluation, wanted, evaluation.bundle["name"])
        for evaluation, wanted in zip(evaluations, beams, strict=True)
    ]
    before, after = (evaluation.results[beam] for evaluation, beam in zip(evaluations, chosen, strict=True))
    if before.captions.keys() != after.captions.keys():
        odd = sorted(before.captions.keys() ^ after.captions.keys())
        raise ConfigurationError(
            f"the two were evaluated on different images; in only one of them: {len(odd)}, first {odd[0]}"
        )
    missing = [name for name in before.captions if name not in dataset.captions]
    if missing:
        raise DataError(f"evaluated images without captions in the data set: {len(missing)}, first {missing[0]}")

    references = references_of(dataset, list(before.captions))
    first_statistics, second_statistics = (
        statistics_of({name: result.captions[name] for name in references}, references) for result in (before, after)
    )
    gains = 100 * (second_statistics.cider_d - first_statistics.cider_d)
    changes = [
        Change(name, before.captions[name].text, after.captions[name].text, float(gain))
        for name, gain in zip(references, gains, strict=True)
        if before.captions[name].text != after.captions[name].text
    ]
    return Comparison(
        names=(f"{first.bundle['name']} (beam {chosen[0]})", f"{second.bundle['name']} (beam {chosen[1]})"),
        photos=len(references),
        limit=first.settings.get("limit"),
        # Not the saved scores, which may be of an earlier state of the data set's captions: the columns must add up.
        scores=(first_statistics.scores(), second_statistics.scores()),
        differences=paired_bootstrap(first_statistics, second_statistics),
        changes=sorted(changes, key=lambda change: change.gain),
    )


def format_comparison(comparison: Comparison) -> str:
    """The scores of both and the differences with their intervals, as Markdown."""
    first, second = comparison.scores
    lines = [
        f"A: {comparison.names[0]}  \nB: {comparison.names[1]}",
        "",
        "| | A | B | B - A | 95% interval | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, title in TITLES.items():
        difference = comparison.differences[name]
        # As printed: coco-caption's BLEU is never quite 0, but differences below a hundredth of a point are nothing.
        value, low, high = (signed(figure, 2) for figure in (difference.value, difference.low, difference.high))
        excludes = "" if round(difference.low, 2) <= 0 <= round(difference.high, 2) else "excludes 0"
        scores = f"{first[name]:.2f} | {second[name]:.2f}"
        lines.append(f"| {title} | {scores} | {value} | {low} to {high} | {excludes} |")
    changed, gained = len(comparison.changes), sum(change.gain > 0 for change in comparison.changes)
    lost = sum(change.gain < 0 for change in comparison.changes)
    lines += [
        "",
        f"{comparison.photos} photos{note_on_limit(comparison.limit)}; {changed} captions changed, "
        f"B scores higher on {gained} and lower on {lost}. "
        f"Intervals are by themselves, not corrected for there being {len(TITLES)}.",
    ]
    return "\n".join(lines)


def write_report(comparison: Comparison, dataset: Dataset, folder: Path, *, shown: int = 20) -> Path:
    """Write `report.md`, with the table and the `shown` largest gains and losses, and its thumbnails into `folder`.

    Returns:
        the path of `report.md`.

    Raises:
        ConfigurationError: a photo cannot be read or the report cannot be written.
        ExportError: as `check_report`.
    """
    check_report(folder)
    losses = [change for change in comparison.changes if change.gain < 0][:shown]
    gains = [change for change in reversed(comparison.changes) if change.gain > 0][:shown]
    try:
        pictures = {
            _thumbnail(change): load_picture(dataset.path(change.image), longest_side=_THUMBNAIL)
            for change in [*losses, *gains]
        }
        (folder / _THUMBNAILS).mkdir(parents=True, exist_ok=True)
        report = folder / _REPORT
        sections = _section("B gains most", gains, dataset) + _section("B loses most", losses, dataset)
        # Before the thumbnails: `check_report` lets them be replaced only where there is a report.
        write_whole(report, "\n\n".join([_TITLE, format_comparison(comparison), *sections]) + "\n")
        for name, picture in pictures.items():
            Image.fromarray(picture).save(folder / name)
    except (OSError, ImageError) as error:
        raise ConfigurationError(f"{folder}: the report cannot be written ({error})") from error
    return report


def check_report(folder: Path) -> None:
    """Raise an ExportError if no report is to be written into a folder; for verbs to ask before they caption.

    None is written into a git repository, which the photos of a data set must not get into, nor where it would replace
    files that caplet-export did not write.
    """
    resolved = check_place(folder)
    if resolved.is_file():
        raise ExportError(f"{folder}: is a file, not a folder")
    for parent in (resolved, *resolved.parents):
        if (parent / ".git").exists():
            raise ConfigurationError(f"{folder}: lies in the repository {parent}, and photos must stay out of it")
    report, thumbnails = resolved / _REPORT, resolved / _THUMBNAILS
    if report.exists() and not (report.is_file() and report.read_bytes().startswith(f"{_TITLE}\n".encode())):
        raise foreign(folder / _REPORT)
    if thumbnails.exists() and not report.exists() and (not thumbnails.is_dir() or any(thumbnails.iterdir())):
        raise ExportError(f"{folder / _THUMBNAILS}: not made with a report by caplet-export, so not replaced")


def choose_beam(evaluation: Evaluation, wanted: int | None, subject: object) -> int:
    """The beam of an evaluation that is to be compared: the `wanted` one, or its only one.

    Raises:
        ConfigurationError: about `subject`, if it does not have this beam, or several and none is wanted.
    """
    have = list(evaluation.results)
    if wanted is None and len(have) == 1:
        return have[0]
    if wanted not in have:
        asked = "; name one with --beam" if wanted is None else f", not {wanted}"
        raise ConfigurationError(f"{subject}: evaluated with beam size {' and '.join(map(str, have))}{asked}")
    return wanted


def _section(title: str, changes: Sequence[Change], dataset: Dataset) -> list[str]:
    return [f"## {title}", *(_entry(change, dataset.captions[change.image]) for change in changes)]


def _entry(change: Change, references: Sequence[str]) -> str:
    picture = f"![{change.image}]({quote(_thumbnail(change))})"
    lines = [f"### {change.gain:+.0f} CIDEr-D: {change.image}", "", picture, ""]
    lines += [f"- A: **{change.first}**", f"- B: **{change.second}**"]
    return "\n".join([*lines, *(f"- reference: {reference}" for reference in references)])


def _thumbnail(change: Change) -> str:
    name = change.image
    return f"{_THUMBNAILS}/{name}" if name.lower().endswith((".jpg", ".jpeg")) else f"{_THUMBNAILS}/{name}.jpg"
