"""`caplet-export prune`: keep the units of a captioner that matter most; it is to be trained further."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from caplet.arguments import count
from caplet_export.backend import load_tensorflow
from caplet_export.errors import ConfigurationError
from caplet_export.verbs import open_training_photos, seed

if TYPE_CHECKING:
    from caplet_export.checkpoint import Checkpoint
    from caplet_export.prune import Units


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
    from caplet_export.prune import SIZES, prune_run, require_prunable

    checkpoint = load_checkpoint(arguments.run)
    require_prunable(checkpoint)
    whole = checkpoint.config.model
    wanted = {size: getattr(arguments, size) for size in SIZES}
    sizes = {size: getattr(whole, size) if units is None else units for size, units in wanted.items()}
    for size, units in sizes.items():
        if units > getattr(whole, size):
            option = f"--{size.replace('_', '-')} {units}"
            raise ConfigurationError(f"{option}: {arguments.run} has only {getattr(whole, size)}")
    config = replace(whole, **sizes)
    with whole_folder(arguments.output, RUN, (arguments.run, arguments.data, arguments.features)) as folder:
        prune_run(checkpoint, _importances(checkpoint, arguments), config, folder)
    changes = ", ".join(f"{size} {getattr(whole, size)} -> {units}" for size, units in sizes.items())
    print(f"wrote {arguments.output}: {changes}; now train it on")
    return 0


def _importances(checkpoint: Checkpoint, arguments: argparse.Namespace) -> list[Units]:
    """Importance of each member's units, summed over the training photos (not their other views)."""
    from caplet_export.progress import ProgressBar
    from caplet_export.prune import SIZES, unit_importances

    store, names = open_training_photos(checkpoint, arguments)
    batches: list[list[Units]] = []
    with ProgressBar(total=len(names), desc="importance", unit="photo") as bar:
        for photos, members in unit_importances(checkpoint, store, names, arguments.seed):
            batches.append(members)
            bar.update(photos)
    by_member = zip(*batches, strict=True)
    return [{size: np.sum([own[size] for own in member], axis=0) for size in SIZES} for member in by_member]
