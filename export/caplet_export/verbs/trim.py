"""`caplet-export trim`: drop the words that a captioner never comes near to saying."""

from __future__ import annotations

import argparse
from pathlib import Path

from caplet.arguments import count
from caplet_export.backend import load_tensorflow
from caplet_export.errors import ConfigurationError
from caplet_export.outputs import RUN, check_folder, whole_folder
from caplet_export.verbs import open_training_photos

LIKELIEST = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", type=Path, help="data set in the Flickr8k layout")
    parser.add_argument("--features", type=Path, help="folder written by `caplet-export features`")
    parser.add_argument(
        "--likeliest",
        type=count,
        metavar="K",
        help="words to keep: those that are among the K likeliest at any step of the captions of the training photos "
        f"(default: {LIKELIEST})",
    )
    parser.add_argument(
        "--words", type=Path, metavar="FILE", help="keep the words of this vocabulary.txt; no data, no features needed"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="new run folder; a run there is replaced")


def run(arguments: argparse.Namespace) -> int:
    """Trim the run's vocabulary."""
    if arguments.words is None and None in (arguments.data, arguments.features):
        raise ConfigurationError("which words? give --data and --features, or --words")
    if arguments.words and (arguments.data or arguments.features or arguments.likeliest):
        raise ConfigurationError("which words? give --words, or --data, --features and --likeliest, not both")
    likeliest = arguments.likeliest or LIKELIEST

    inputs = list(filter(None, (arguments.run, arguments.data, arguments.features, arguments.words)))
    check_folder(arguments.output, RUN, inputs)

    load_tensorflow()
    from caplet_export.checkpoint import load_checkpoint
    from caplet_export.text import Vocabulary
    from caplet_export.trim import proposed_words, trim_run

    checkpoint = load_checkpoint(arguments.run)
    before = len(checkpoint.vocabulary)
    if arguments.words is None:
        kept = proposed_words(checkpoint, *open_training_photos(checkpoint, arguments), likeliest)
        which = f"those among the {likeliest} likeliest at any step on a training photo"
    else:
        words = Vocabulary.load(arguments.words).words
        strange = [word for word in words if word not in checkpoint.vocabulary]
        if strange:
            raise ConfigurationError(f"{arguments.words}: {strange[0]!r} is not a word of {arguments.run}")
        kept = set(checkpoint.vocabulary.encode(words))
        which = f"those of {arguments.words.name}"
    with whole_folder(arguments.output, RUN, inputs) as folder:
        after = len(trim_run(checkpoint, kept, f"of {before}: {which}", folder))
    print(f"wrote {arguments.output}: {after} of {before} words")
    return 0
