"""`caplet-export features`: run InceptionV3 over a data set and store its features."""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path
from typing import Any

from caplet.arguments import count
from caplet_export.backend import load_tensorflow
from caplet_export.config import INCEPTION_BLOCKS, load_run_config
from caplet_export.errors import ConfigurationError, DataError
from caplet_export.features import StoreSource, extract, held_by_all, weights_digest, whole_in_another_precision
from caplet_export.outputs import RUN
from caplet_export.verbs import read_data
from caplet_export.views import FLIP, PLAIN, check_view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("output", type=Path, help="folder of the stores; repeat the command to continue")
    parser.add_argument("--data", type=Path, required=True, help="data set in the Flickr8k layout")
    parser.add_argument(
        "--encoder-weights", default="imagenet", help="`imagenet` (a download) or a path (default: %(default)s)"
    )
    parser.add_argument(
        "--run",
        type=Path,
        help="use the Inception blocks that this run trained: its captioner reads only their features",
    )
    parser.add_argument(
        "--layer",
        nargs="+",
        choices=INCEPTION_BLOCKS,
        metavar="BLOCK",
        help="Inception blocks to store (default: those that --run reads, or mixed10); several cost no more than the "
        "last of them alone",
    )
    parser.add_argument(
        "--views",
        nargs="*",
        default=[FLIP],
        metavar="VIEW",
        help="views of the training photos to store besides the photos as they are: flip, and crop1, crop2 and so on, "
        "each with other random crops (default: flip)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="precision of the computation; bfloat16 is faster on processors that have it, and off by some 3 percent",
    )
    parser.add_argument(
        "--batch-size", type=count, default=32, metavar="N", help="photos computed together (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Fill the stores: `BLOCK-plain` with every split, and `BLOCK-VIEW` with training photos for each further view."""
    from caplet_export.photos import read_photo  # first, so that a plain installation is told at once what it lacks
    from caplet_export.progress import ProgressBar, tell

    if all((arguments.output / name).exists() for name in RUN[0]):
        raise ConfigurationError(f"{arguments.output}: is a run; give the stores a folder of their own")
    views = [check_view(view) for view in arguments.views]
    read = load_run_config(arguments.run).model.blocks if arguments.run else ("mixed10",)
    blocks = list(dict.fromkeys(arguments.layer or read))
    dataset = read_data(arguments)
    digest = weights_digest(arguments.encoder_weights)

    load_tensorflow()
    import tensorflow as tf

    from caplet_export.checkpoint import load_extractor
    from caplet_export.extractor_part import extractor_digest
    from caplet_export.inception import INPUT_SIZE, build_extractor, scale, tap_blocks

    if arguments.run:
        trained = extractor_digest(arguments.run)
        extractor = load_extractor(arguments.run, arguments.encoder_weights, arguments.precision)
    else:
        trained, extractor = None, build_extractor(arguments.encoder_weights, arguments.precision)
    tapped = tap_blocks(extractor, blocks)
    shapes = [tapped.output[block].shape for block in blocks]
    sizes = [(height * width, channels) for _, height, width, channels in shapes]
    pixels = tf.TensorSpec((None, INPUT_SIZE, INPUT_SIZE, 3), tf.uint8)

    @tf.function(input_signature=[pixels], autograph=False)
    def forward(batch: Any) -> Any:
        seen = tapped(scale(batch), training=False)
        rows = [tf.reshape(seen[block], (-1, *size)) for block, size in zip(blocks, sizes, strict=True)]
        return [tf.cast(features, tf.float32) for features in rows]

    train = list(dataset.splits.get("train", ()))
    plan = [(PLAIN, [name for split in dataset.splits.values() for name in split])]
    plan += [(view, train) for view in dict.fromkeys(views) if view != PLAIN]
    missing = sum(
        2 * math.prod(size) * len(set(names) - held_by_all([arguments.output / f"{block}-{view}"]))
        for view, names in plan
        for block, size in zip(blocks, sizes, strict=True)
    )
    disk = next(folder for folder in (arguments.output, *arguments.output.resolve().parents) if folder.exists())
    if missing > (free := shutil.disk_usage(disk).free):  # which some drives on a network tell wrongly
        cause = f"{arguments.output}: features need {missing / 1e9:.1f} GB more, but only {free / 1e9:.1f} GB is free"
        tell(f"caplet-export features: {cause}")
    unreadable: set[str] = set()
    for view, names in plan:
        stores = {
            arguments.output / f"{block}-{view}": StoreSource(digest, view, block, *size, arguments.precision, trained)
            for block, size in zip(blocks, sizes, strict=True)
        }
        if there := whole_in_another_precision(stores, names):
            for store in there:
                stored = len(set(names) - store.skipped)
                print(f"{store.folder}: {stored} of {len(names)} photos, there already, in {store.source.precision}")
            continue
        held = held_by_all(stores).intersection(names)
        results = extract(
            stores,
            names,
            lambda name: read_photo(dataset, name, (INPUT_SIZE, INPUT_SIZE)),
            lambda batch: [features.numpy() for features in forward(batch)],
            batch_size=arguments.batch_size,
        )
        stored = 0
        title = " ".join(folder.name for folder in stores)
        # Drawn after each batch, not at its first photo, which would seem to have taken the time of the whole; and what
        # is there already took no time.
        pace = {"miniters": arguments.batch_size, "maxinterval": math.inf, "initial": len(held)}
        with ProgressBar(desc=title, total=len(names), unit="photo", leave=True, **pace) as bar:
            for name, problem in results:
                bar.update(name not in held)
                stored += problem is None
                if problem and name not in unreadable:
                    unreadable.add(name)
                    tell(f"caplet-export features: left out {name}: {problem}")
        for folder in stores:
            print(f"{folder}: {stored} of {len(names)} photos")
    if unreadable and len(unreadable) == len(plan[0][1]):
        raise DataError(f"{arguments.data}: not one photo could be read")
    return 0
