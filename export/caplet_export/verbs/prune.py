"""`caplet-export prune`: keep the units of a captioner that matter most; it is to be trained further."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from caplet.arguments import count
from caplet_export.backend import load_tensorflow
from caplet_export.errors import ConfigurationError
from caplet_export.verbs import open_training_photos, seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", type=Path, required=True, help="data set in the Flickr8k layout")
    parser.add_argument("--features", type=Path, required=True, help="folder written by `caplet-export features`")
    for name, what in (("state", "the GRU"), ("feature", "the encoded photo"), ("attention", "the attention")):
        parser.add_argument(
            f"--{name}-size", type=count, metavar="N", help=f"units of {what} to keep (default: all of them)"
        )
    parser.add_argument(
        "--seed",
        type=seed,
        default=1,
        help="random seed for the sampled captions that importance is estimated on (default: %(default)s)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="new run folder; a run there is replaced")


def run(arguments: argparse.Namespace) -> int:
    """Prune the run."""
    load_tensorflow()
    from caplet_export.checkpoint import load_checkpoint
    from caplet_export.outputs import RUN, whole_folder
    from caplet_export.prune import SIZES, prune_run, require_prunable, unit_importances

    checkpoint = load_checkpoint(arguments.run)
    require_prunable(checkpoint)
    whole = checkpoint.config.model
    sizes = {size: getattr(arguments, size) or getattr(whole, size) for size in SIZES}
    for size, units in sizes.items():
        if units > getattr(whole, size):
            option = f"--{size.replace('_', '-')} {units}"
            raise ConfigurationError(f"{option}: {arguments.run} has only {getattr(whole, size)}")
    config = replace(whole, **sizes)
    if config == whole:
        smaller = "give a smaller --state-size, --feature-size or --attention-size"
        raise ConfigurationError(f"{arguments.run}: all units would be kept; {smaller}")
    with whole_folder(arguments.output, RUN, (arguments.run, arguments.data, arguments.features)) as folder:
        # Of the training photos as they are, not of their other views.
        importances = unit_importances(checkpoint, *open_training_photos(checkpoint, arguments), arguments.seed)
        prune_run(checkpoint, importances, config, folder)
    changes = ", ".join(f"{size} {getattr(whole, size)} -> {units}" for size, units in sizes.items())
    print(f"wrote {arguments.output}: {changes}; now train it further")
    return 0
