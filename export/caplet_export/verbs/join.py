"""`caplet-export join`: make one captioner of several trained ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from caplet_export.backend import load_tensorflow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        help="run folders of one vocabulary and one configuration; a run that was joined brings all its captioners",
    )
    parser.add_argument("--average", action="store_true", help="average their weights: for runs that share a beginning")
    parser.add_argument("-o", "--output", type=Path, required=True, help="new run folder; a run there is replaced")


def run(arguments: argparse.Namespace) -> int:
    """Join the runs."""
    load_tensorflow()
    from caplet_export.ensemble import average_runs, join_runs
    from caplet_export.outputs import RUN, whole_folder

    with whole_folder(arguments.output, RUN, arguments.runs) as folder:
        (average_runs if arguments.average else join_runs)(arguments.runs, folder)
    made = f"the mean of {len(arguments.runs)} runs" if arguments.average else "their captioners as one"
    print(f"wrote {arguments.output}: {made}")
    return 0
