"""What the commands have in common: counts, and where results go."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def count(text: str) -> int:
    """A whole number of at least 1, for `add_argument`."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def add_output(parser: argparse.ArgumentParser, name: str) -> None:
    """Add `-o`, whose default is the file that `benchmarks.report` reads."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"default: {RESULTS / name}")


def output_file(parser: argparse.ArgumentParser, given: Path | None, name: str, *, whole: bool) -> Path:
    """Where to write, checked before anything is measured; what is not the whole measurement replaces no results."""
    if given is None and not whole:
        parser.error(f"only a part is measured, which is not to replace {RESULTS / name}; give -o")
    path = given or RESULTS / name
    if not os.access(path if path.exists() else path.parent, os.W_OK) or path.is_dir():
        parser.error(f"{path}: cannot be written to")
    return path
