"""`caplet-export bundle`: put graphs, vocabulary, card and golden captions into one bundle."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

from caplet.arguments import count
from caplet_export.config import DEFAULT_DECODING, load_run_config
from caplet_export.errors import ConfigurationError
from caplet_export.verbs import read_data


def _penalty(text: str) -> float:
    """A `type` for argparse: a length penalty, in the manifest's limits."""
    with suppress(ValueError):
        if 0 <= (number := float(text)) <= 10:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 10")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("graphs", type=Path, help="folder written by `caplet-export quantize` or `convert`")
    parser.add_argument("--run", type=Path, required=True, help="run folder the graphs come from")
    parser.add_argument("--name", required=True, help="name of the bundle")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="data set it was trained on, to learn what people do not say: words that they seldom repeat, and "
        '"a" before a vowel (default: nothing is ruled out)',
    )
    parser.add_argument(
        "--golden",
        type=Path,
        nargs="+",
        required=True,
        metavar="PHOTO",
        help="photos for `caplet check`; they become part of the bundle, so they must be free to share",
    )
    parser.add_argument("--metrics", type=Path, metavar="JSON", help="written by `caplet-export evaluate --json`")
    parser.add_argument(
        "--comparison", type=Path, metavar="MD", help="for the card: what `evaluate --compare FLOAT INT8` printed"
    )
    parser.add_argument(
        "--ablation", type=Path, nargs="+", default=[], metavar="JSON", help="for the card: tables by `ablation`"
    )
    parser.add_argument("--findings", type=Path, metavar="MD", help="for the card: what else was found out")
    parser.add_argument("--limits", type=Path, metavar="MD", help="for the card: what it must not be used for")
    parser.add_argument(
        "--beam", type=count, default=DEFAULT_DECODING.beam_size, help="default beam size (default: %(default)s)"
    )
    parser.add_argument(
        "--length-penalty",
        type=_penalty,
        default=DEFAULT_DECODING.length_penalty,
        metavar="X",
        help="a sentence's log-probability is divided by its length to this power (default: %(default)s)",
    )
    parser.add_argument("--max-length", type=count, help="most words in a caption (default: as trained)")
    parser.add_argument("--weights-license", required=True, metavar="TEXT", help="licence of the weights")
    parser.add_argument("--data-license", required=True, metavar="TEXT", help="licence of the training data")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for the bundle; a bundle there is replaced"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the bundle and print its golden captions."""
    from caplet_export.articles import article_forms
    from caplet_export.bundle import Licences, read_ablation, read_record, write_bundle
    from caplet_export.checkpoint import run_digest
    from caplet_export.inputs import read_json, read_text
    from caplet_export.repeats import repeatable_ngrams
    from caplet_export.stages import read_stages
    from caplet_export.text import Vocabulary, clean

    config = load_run_config(arguments.run)
    graphs, run = (Vocabulary.load(folder / "vocabulary.txt") for folder in (arguments.graphs, arguments.run))
    if graphs.words != run.words:
        raise ConfigurationError(
            f"{arguments.graphs}: its vocabulary is not that of {arguments.run}, so it is of another run"
        )
    converted = read_record(arguments.graphs, "conversion").get("run_weights")
    if converted and converted != run_digest(arguments.run):
        raise ConfigurationError(f"{arguments.graphs}: converted from other weights than those of {arguments.run}")
    language: dict[str, Any] = {}
    if arguments.data:
        dataset = read_data(arguments)
        captions = [
            clean(text, config.text.rules) for name in dataset.split("train") for text in dataset.captions[name]
        ]
        language = {"repeatable": repeatable_ngrams(captions, graphs), "forms": article_forms(captions, graphs)}
    write_bundle(
        arguments.output,
        arguments.graphs,
        name=arguments.name,
        golden=arguments.golden,
        recipe=dataclasses.asdict(config),
        stages=read_stages(arguments.run),
        decoding=dataclasses.replace(
            DEFAULT_DECODING,
            beam_size=arguments.beam,
            max_length=arguments.max_length or config.text.max_length,
            length_penalty=arguments.length_penalty,
            **language,
        ),
        licences=Licences(arguments.weights_license, arguments.data_license),
        metrics=read_json(arguments.metrics) if arguments.metrics else None,
        comparison=read_text(arguments.comparison) if arguments.comparison else None,
        ablations=[read_ablation(path) for path in arguments.ablation],
        findings=read_text(arguments.findings) if arguments.findings else None,
        limits=read_text(arguments.limits) if arguments.limits else None,
        inputs=[arguments.run],
    )
    for golden in read_json(arguments.output / "manifest.json")["golden"]:
        print(f"{golden['file']} (beam {golden['beam_size']}): {golden['text']}")
    print(f"wrote {arguments.output}")
    return 0
