"""`caplet-export ablation`: compare training runs on the dev split, for the model card."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from caplet_export.backend import load_tensorflow
from caplet_export.outputs import check_file, write_whole
from caplet_export.verbs import read_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, in the order in which the recipe grew")
    parser.add_argument(
        "--against",
        choices=("before", "first"),
        default="before",
        help="compare each run with the one before it, or with the first of all (default: %(default)s)",
    )
    parser.add_argument("--data", type=Path, required=True, help="data set in the Flickr8k layout")
    parser.add_argument("--features", type=Path, required=True, help="folder written by `caplet-export features`")
    parser.add_argument(
        "--encoder-weights",
        default="imagenet",
        help="`imagenet` or a path; for runs that trained Inception blocks (default: %(default)s)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON for `caplet-export bundle --ablation`")


def run(arguments: argparse.Namespace) -> int:
    """Score every run, write the table and print it."""
    check_file(arguments.output, frozenset({"title", "columns", "rows"}))
    dataset = read_data(arguments)

    load_tensorflow()
    from caplet_export.ablation import compare_runs
    from caplet_export.card import markdown_table

    table = compare_runs(
        arguments.runs,
        dataset,
        arguments.features,
        against=arguments.against,
        encoder_weights=arguments.encoder_weights,
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.output, json.dumps(table, indent=1) + "\n")
    print(markdown_table(table["columns"], table["rows"]), table["note"], sep="\n\n")
    return 0
