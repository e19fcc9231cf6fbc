"""`caplet-export train`: train a captioner on stored features."""

from __future__ import annotations

import argparse
from pathlib import Path

from caplet_export.backend import load_tensorflow
from caplet_export.errors import ConfigurationError
from caplet_export.recipes import RECIPES
from caplet_export.verbs import add_set_option, chosen_config, read_data, shown_by, tell_end, tell_epoch
from caplet_export.views import PLAIN, check_view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", type=Path, help="run folder; repeat the command to continue where it stopped")
    parser.add_argument("--data", type=Path, required=True, help="data set in the Flickr8k layout")
    parser.add_argument("--features", type=Path, required=True, help="folder written by `caplet-export features`")
    recipe = parser.add_mutually_exclusive_group()
    recipes = [name for name in RECIPES if not name.startswith("tune")]
    recipe.add_argument("--recipe", choices=recipes, default="cross_entropy", help="default: %(default)s")
    recipe.add_argument("--config", type=Path, help="configuration JSON in place of a recipe")
    add_set_option(parser)
    parser.add_argument(
        "--from", dest="start_from", type=Path, metavar="RUN", help="begin with this run's model and weights"
    )
    parser.add_argument("--teacher", type=Path, metavar="RUN", help="the run to imitate, for the recipe distillation")
    parser.add_argument(
        "--encoder-weights",
        help="`imagenet` or a path: weights that the features were made with (default: any), and that upper blocks are "
        "trained from (default: imagenet)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, printing a line for each epoch."""
    from caplet_export.progress import ProgressBar, tell  # first: a plain installation is told at once what it lacks

    config = chosen_config(arguments, RECIPES[arguments.recipe])
    if config.train.objective == "self_critical" and arguments.start_from is None:
        raise ConfigurationError("self-critical training goes on from a trained run; give --from")
    dataset = read_data(arguments)

    load_tensorflow()
    from caplet_export.features import open_store, weights_digest
    from caplet_export.inception import build_extractor
    from caplet_export.train import Stores, Trainer

    plain, *views = (
        open_store(arguments.features, config.stored_blocks, check_view(view))
        for view in (PLAIN, *config.train.views.split())
    )
    weights = arguments.encoder_weights or "imagenet"
    if (config.trains_extractor or arguments.encoder_weights) and weights_digest(weights) != plain.source.weights:
        cause = "stored with other Inception weights; give the same --encoder-weights"
        raise ConfigurationError(f"{plain.folder}: {cause}")
    trainer = Trainer(
        arguments.run,
        config,
        dataset,
        Stores(views, plain),
        start_from=arguments.start_from,
        extractor=(
            build_extractor(weights, config.train.precision, config.model.blocks) if config.trains_extractor else None
        ),
        teacher=arguments.teacher,
    )
    for sentence in trainer.not_learned:
        tell(f"caplet-export train: {sentence}")
    while not trainer.finished:
        number = len(trainer.history) + 1
        with ProgressBar(desc=f"epoch {number}", unit="batch") as bar:
            trainer.run_epoch(shown_by(bar))
        tell_epoch(trainer)
    tell_end(trainer)
    return 0
