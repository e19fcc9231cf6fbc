"""The verbs of `caplet-export`, one module each: `HELP`, `add_arguments(parser)`, `run(arguments) -> exit status`."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number from 1 up, as the type of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number
