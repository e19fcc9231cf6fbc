"""`caplet-export trim`: a captioner without the words it never comes near to saying."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from caplet_export.backend import load_tensorflow
from caplet_export.errors import ConfigurationError
from caplet_export.flickr8k import read_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="run", type=Path, help="run folder")
    parser.add_argument("--data", type=Path, required=True, help="data set in the Flickr8k layout")
    parser.add_argument("--features", type=Path, required=True, help="folder written by `caplet-export features`")
    parser.add_argument(
        "--likeliest",
        type=int,
        default=5,
        metavar="K",
        help="words to keep: those that are among the K likeliest at any step of the captions of the training photos "
        "(default: %(default)s)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the new run folder; replaced if there")


def run(arguments: argparse.Namespace) -> int:
    """Trim the run's vocabulary."""
    if arguments.likeliest < 1:
        raise ConfigurationError(f"--likeliest {arguments.likeliest}: at least the likeliest word must stay")
    dataset = read_dataset(arguments.data)

    load_tensorflow()
    from caplet_export.checkpoint import load_checkpoint
    from caplet_export.features import open_store
    from caplet_export.outputs import whole_folder
    from caplet_export.trim import proposed_words, trim_run
    from caplet_export.views import PLAIN

    checkpoint = load_checkpoint(arguments.folder)
    before = len(checkpoint.vocabulary)
    likeliest = min(arguments.likeliest, before)
    store = open_store(arguments.features, checkpoint.config.model.blocks, PLAIN)
    names = [name for name in dataset.split("train") if name not in store.skipped]
    kept: set[int] = set()
    with tqdm(total=len(names), desc="words", unit="photo", disable=None, leave=False) as bar:
        for photos, words in proposed_words(checkpoint, store, names, likeliest):
            kept.update(words.tolist())
            bar.update(photos)
    reason = f"of {before}: those among the {likeliest} likeliest at any step on a training photo"
    with whole_folder(arguments.output) as folder:
        after = len(trim_run(checkpoint, kept, reason, folder))
    print(f"wrote {arguments.output}: {after} of {before} words")
    return 0
