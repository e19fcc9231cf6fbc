"""The verbs of `caplet-export`, one module each: `add_arguments(parser)` and `run(arguments) -> exit status`."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from caplet.errors import printable
from caplet_export.config import Config, inherit, load_config, load_run_config, override, require_effect
from caplet_export.errors import DataError
from caplet_export.flickr8k import Dataset, read_dataset

if TYPE_CHECKING:
    from caplet_export.checkpoint import Checkpoint
    from caplet_export.features import StoredFeatures
    from caplet_export.progress import ProgressBar
    from caplet_export.runs import Run

_NAMED = 20
"""Defects of a file that are named."""
_REDRAWN = 10.0
"""Seconds after which a run's curves are drawn anew: drawing takes longer than an epoch of a few photos."""


def seed(text: str) -> int:
    """A `type` for argparse: a whole number of 32 bits, since NumPy and Keras take no larger seed."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{number} is not 0 to {2**32 - 1}")
    return number


def read_data(arguments: argparse.Namespace) -> Dataset:
    """The data set of `--data`; its defects, which are left out, are printed on standard error and counted. Of each
    file only as many are printed as a person reads: where most photos of COCO are missing, there are 200,000.

    Raises:
        DataError: as `read_dataset`.
    """
    from caplet_export.progress import tell

    dataset = read_dataset(arguments.data)
    found: Counter[str] = Counter()
    for defect in dataset.defects:
        found[defect.file] += 1
        if found[defect.file] <= _NAMED:
            tell(f"caplet-export {arguments.verb}: {defect}")
    if len(dataset.defects) > 1:
        named = "named above" if max(found.values()) <= _NAMED else f"the first {_NAMED} of each file named above"
        tell(f"caplet-export {arguments.verb}: {arguments.data}: {len(dataset.defects)} defects in all, {named}")
    return dataset


def add_set_option(parser: argparse.ArgumentParser) -> None:
    """Add `--set`, which `chosen_config` reads."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.SWITCH=VALUE",
        help="change one switch, such as train.epochs=5; repeatable",
    )


def chosen_config(arguments: argparse.Namespace, recipe: Config) -> Config:
    """The configuration of a training run: that of `--config`, or else the recipe, which inherits from the run of
    `--from` if there is one; with the switches of `--set`.

    Raises:
        ConfigurationError: there is no run at `--from`; or as `load_config`, `override` and `require_effect`.
    """
    config = recipe
    if arguments.config:
        config = load_config(arguments.config)
    elif arguments.start_from:
        config = inherit(recipe, load_run_config(arguments.start_from))
    config = override(config, arguments.set)
    require_effect(arguments.set, arguments.verb, config)
    return config


def open_training_photos(checkpoint: Checkpoint, arguments: argparse.Namespace) -> tuple[StoredFeatures, list[str]]:
    """The features of `--features` that a run reads, and the training photos of `--data` that have some.

    Raises:
        DataError: there is no such photo; or as `read_data`.
        StoreError, ConfigurationError: as `caplet_export.checkpoint.open_features`.
    """
    from caplet_export.checkpoint import open_features

    dataset = read_data(arguments)
    store = open_features(checkpoint, arguments.features)
    names = store.readable(dataset.split("train"))
    if not names:
        raise DataError(f"{arguments.data}: no training photo that could be read; {arguments.verb} needs at least one")
    return store, names


def shown_by(bar: ProgressBar) -> Callable[[int, int, float], None]:
    """A function of step, number of steps and loss, which shows them on a progress bar."""

    def show(step: int, steps: int, loss: float) -> None:
        bar.total = steps
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update(step - bar.n)

    return show


def tell_epoch(run: Run) -> None:
    """Print the figures of the epoch that a run has just ended and a caption, to see it learn; and draw the run's
    curves, if that is not just done: `tell_end` draws the last.
    """
    from caplet_export.charts import plot_history

    epoch, kept = run.history[-1], run.kept
    assert kept is not None
    # Without patience the last epoch is kept, however good it is.
    best = run.config.train.patience and kept is epoch
    print(
        f"epoch {epoch.epoch:3d}  train loss {epoch.train_loss:7.3f}  dev loss {epoch.dev_loss:.3f}  "
        f"dev CIDEr-D {epoch.dev_cider:5.1f}  {epoch.seconds:.0f} s{'  best' if best else ''}",
        flush=True,
    )
    if run.example:
        photo, caption = run.example
        print(f"           {printable(photo)}: {printable(caption)}", flush=True)
    curves = run.folder / "curves.png"
    if not curves.exists() or not 0 <= time.time() - curves.stat().st_mtime < _REDRAWN:
        plot_history(run.history, kept, run.config.train.objective, curves)


def tell_end(run: Run) -> None:
    """Print which epoch a finished run has kept, and what the run that it began with had, if that was better; draw its
    curves if they lack an epoch.
    """
    from caplet_export.charts import plot_history

    kept, start = run.kept, run.start
    assert kept is not None
    curves, history = run.folder / "curves.png", run.folder / "history.json"
    if not curves.exists() or curves.stat().st_mtime_ns <= history.stat().st_mtime_ns:
        plot_history(run.history, kept, run.config.train.objective, curves)
    before = ""
    if start and start.dev_cider is not None and start.dev_cider > kept.dev_cider:
        before = f" ({start.run}, which it began with, had {start.dev_cider:.1f})"
    print(f"kept epoch {kept.epoch}: dev CIDEr-D {kept.dev_cider:.1f}{before}; weights in {run.folder}")
