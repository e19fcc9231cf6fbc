"""Options that are whole numbers, checked in one way wherever they come in."""

from __future__ import annotations

import operator
from typing import SupportsIndex

from caplet.errors import ArgumentError


def whole_number(option: str, value: SupportsIndex, high: int) -> int:
    """`value`, of Python or NumPy, as an int from 1 to `high`. Raises ArgumentError, with the option as its subject."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number <= high:
        # Python writes no number of thousands of digits.
        shown = repr(value) if number.bit_length() < 1000 else f"a number of {number.bit_length():,} bits"
        raise ArgumentError(option, f"{shown} is not a whole number from 1 to {high}")
    return number
