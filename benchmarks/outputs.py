"""The root of the repository, where results go, and when they were made."""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"


def add_output(parser: argparse.ArgumentParser, name: str) -> None:
    """Add `-o`, whose default is the file that `benchmarks.report` reads."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"default: {RESULTS / name}")


def output_file(parser: argparse.ArgumentParser, given: Path | None, name: str, *, whole: bool) -> Path:
    """Where to write, checked before anything is measured; only the whole measurement may replace the default file."""
    if given is None and not whole:
        parser.error(f"only a part is measured, which is not to replace {RESULTS / name}; give -o")
    path = given or RESULTS / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path if path.exists() else path.parent, os.W_OK) and not path.is_dir()
    except OSError:
        writable = False
    if not writable:
        parser.error(f"{path}: cannot be written to")
    return path


def now() -> str:
    """The time of day in UTC, as results record it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write the results of a benchmark as JSON."""
    path.write_text(json.dumps(results, indent=1) + "\n")
