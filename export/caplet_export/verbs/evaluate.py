"""`caplet-export evaluate`: score a bundle on a split, or compare two."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from caplet.arguments import count
from caplet.bundle import load_bundle
from caplet_export.errors import ConfigurationError
from caplet_export.flickr8k import Dataset
from caplet_export.outputs import check_file
from caplet_export.verbs import read_data

if TYPE_CHECKING:
    from caplet_export.evaluate import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "bundle", nargs="?", type=Path, help="bundle directory (default: $CAPLET_MODEL, or the bundled model)"
    )
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="data set in the Flickr8k layout")
    parser.add_argument("--split", help="train, dev or test (default: dev)")
    parser.add_argument(
        "--beam", nargs="+", type=count, default=[], metavar="N", help="beam sizes (default: the bundle's own)"
    )
    parser.add_argument(
        "--limit",
        type=count,
        metavar="N",
        help="only the first N photos of the split: a quick look, with CIDEr-D on another scale",
    )
    parser.add_argument("--threads", type=count, metavar="N", help="threads of the runtime (default: its own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write scores, intervals and captions to FILE")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="compare two bundles, or two files written with --json; --beam then takes one size, or one for each",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="with --compare: write report.md, thumbnails and JSON to DIR, which must lie outside any repository",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate or compare, print the table, write what was asked for."""
    from caplet_export.evaluate import format_table

    if arguments.compare and (arguments.bundle or arguments.json):
        raise ConfigurationError("--compare takes two bundles or JSON files, and neither BUNDLE nor --json")
    if arguments.report and not arguments.compare:
        raise ConfigurationError("--report needs --compare A B")
    if arguments.json:
        _check_outputs(arguments.json)
    dataset = read_data(arguments)
    if arguments.compare:
        return _compare(arguments, dataset)
    evaluation = _evaluate(arguments, dataset, arguments.bundle, arguments.beam, arguments.json)
    if arguments.json:
        _journal(arguments.json).unlink(missing_ok=True)
    print(format_table(evaluation))
    return 0


def _evaluate(
    arguments: argparse.Namespace, dataset: Dataset, bundle: Path | None, beams: list[int], json_path: Path | None
) -> Evaluation:
    """Evaluate a bundle and save the result in `json_path`; captions are kept beside it, to continue from."""
    from caplet_export.evaluate import evaluate
    from caplet_export.progress import tell

    evaluation = evaluate(
        bundle,
        dataset,
        arguments.split or "dev",
        beam_sizes=beams,
        limit=arguments.limit,
        threads=arguments.threads,
        journal_path=json_path and _journal(json_path),
    )
    for name, reason in evaluation.data["unreadable"].items():
        tell(f"caplet-export evaluate: left out: {name}: {reason}")
    if json_path:
        evaluation.save(json_path)
    return evaluation


def _journal(json_path: Path) -> Path:
    """Where captions are kept until the command has written all its results."""
    return json_path.with_name(f"{json_path.name}.captions.jsonl")


def _check_outputs(json_path: Path, inputs: Sequence[Path] = ()) -> None:
    """Raise an ExportError if a file there is an input, or neither an evaluation nor the captions of one."""
    check_file(json_path, frozenset({"scorer", "results"}), inputs)
    check_file(_journal(json_path), frozenset({"bundle", "split", "limit"}))


def _compare(arguments: argparse.Namespace, dataset: Dataset) -> int:
    from caplet_export.compare import check_report, choose_beam, compare, format_comparison, write_report
    from caplet_export.evaluate import Evaluation

    report: Path | None = arguments.report
    paths: list[Path] = arguments.compare
    names = ("A.json", "B.json")  # of bundles, which are captioned here; evaluations have files of their own
    outputs = [report / name if report and path.is_dir() else None for name, path in zip(names, paths, strict=True)]
    if report:
        check_report(report)
    for output in filter(None, outputs):
        _check_outputs(output, paths)
    # Refuse now what can be refused now, not after minutes of captioning.
    beams = beam_of_each(arguments.beam)
    evaluations = [None if path.is_dir() else Evaluation.load(path) for path in paths]
    for path, evaluation, beam in zip(paths, evaluations, beams, strict=True):
        if evaluation:
            choose_beam(evaluation, beam, path)
        else:
            load_bundle(path)
    captioning = {"--split": arguments.split, "--limit": arguments.limit, "--threads": arguments.threads}
    for option, value in captioning.items():
        if value is not None and all(evaluations):
            raise ConfigurationError(
                f"{option} is for captioning, but both files of --compare have captions already; leave it out"
            )
    _refuse_other_images(arguments, dataset, evaluations)
    first, second = (
        evaluation or _evaluate(arguments, dataset, path, [] if beam is None else [beam], output)
        for path, evaluation, beam, output in zip(paths, evaluations, beams, outputs, strict=True)
    )
    comparison = compare(first, second, dataset, beams=beams)
    print(format_comparison(comparison))
    if report:
        print(f"\n{write_report(comparison, dataset, report)}")
    for output in filter(None, outputs):
        _journal(output).unlink(missing_ok=True)
    return 0


def beam_of_each(beam_sizes: Sequence[int]) -> tuple[int | None, int | None]:
    """The beam of each of two evaluations, None where none is named. Raises a ConfigurationError for more than two."""
    if len(beam_sizes) > 2:
        raise ConfigurationError(f"--compare takes one beam size, for both, or two, not {len(beam_sizes)}")
    return (beam_sizes[0], beam_sizes[-1]) if beam_sizes else (None, None)


def _refuse_other_images(
    arguments: argparse.Namespace, dataset: Dataset, evaluations: Sequence[Evaluation | None]
) -> None:
    """Raise a ConfigurationError if a bundle would caption other images than those of the saved evaluation."""
    if all(evaluations):
        return
    images = set(dataset.split(arguments.split or "dev")[: arguments.limit])
    for path, evaluation in zip(arguments.compare, evaluations, strict=True):
        if evaluation and images != evaluation.images:
            raise ConfigurationError(f"{path}: evaluated on other images; give the same --split and --limit")
