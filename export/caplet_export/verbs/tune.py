"""`caplet-export tune`: train encoder and decoder as one, from pixels."""

from __future__ import annotations

import argparse
from pathlib import Path

from caplet_export.backend import load_keras
from caplet_export.recipes import RECIPES
from caplet_export.verbs import add_set_option, chosen_config, read_data, shown_by, tell_end, tell_epoch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", type=Path, help="run folder; repeat the command to continue where it stopped")
    parser.add_argument("--data", type=Path, required=True, help="data set in the Flickr8k layout")
    parser.add_argument(
        "--from", dest="start_from", type=Path, metavar="RUN", required=True, help="begin with this run's captioner"
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="imitate these runs together, instead of training on captions",
    )
    parser.add_argument("--config", type=Path, help="configuration JSON in place of the recipe")
    add_set_option(parser)
    parser.add_argument("--encoder-weights", default="imagenet", help="`imagenet` or a path (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Train, printing a line for each evaluation."""
    from caplet_export.progress import ProgressBar, tell  # first: a plain installation is told at once what it lacks

    config = chosen_config(arguments, RECIPES["tune_distillation" if arguments.teacher else "tune"])
    dataset = read_data(arguments)

    load_keras("jax")
    from caplet_export.features import weights_digest
    from caplet_export.inception import build_extractor
    from caplet_export.tune import Tuner

    tuner = Tuner(
        arguments.run,
        config,
        dataset,
        start_from=arguments.start_from,
        build=lambda blocks: build_extractor(arguments.encoder_weights, config.train.precision, blocks),
        encoder_weights=weights_digest(arguments.encoder_weights),
        teachers=arguments.teacher,
    )
    print(f"on {tuner.device}", flush=True)
    for name, problem in tuner.unreadable.items():
        tell(f"caplet-export tune: left out {name}: {problem}")
    for sentence in tuner.not_learned:
        tell(f"caplet-export tune: {sentence}")
    while not tuner.finished:
        with ProgressBar(unit="batch") as bar:
            tuner.run_epochs(shown_by(bar))
        tell_epoch(tuner)
    tell_end(tuner)
    return 0
