"""Options that are whole numbers, checked in one way wherever they come in."""

from __future__ import annotations

import argparse
import operator
from typing import SupportsIndex

from caplet.errors import ArgumentError


def count(text: str) -> int:
    """A whole number of at least 1, as a `type` for argparse; upper limits are checked by the code that has them."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def whole_number(option: str, value: SupportsIndex, high: int) -> int:
    """`value`, of Python or NumPy, as an int from 1 to `high`. Raises ArgumentError about `option` for any other."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number <= high:
        # Python refuses to write a number of thousands of digits.
        shown = repr(value) if number.bit_length() < 1000 else f"a number of {number.bit_length():,} bits"
        raise ArgumentError(option, f"{shown} is not a whole number from 1 to {high}")
    return number
