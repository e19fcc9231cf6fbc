"""Arguments of commands and of functions: wrong usage told in one line, and options that are whole numbers."""

from __future__ import annotations

import argparse
import contextlib
import operator
import sys
from typing import NoReturn, SupportsIndex

from caplet.errors import ArgumentError, printable


class Parser(argparse.ArgumentParser):
    """A parser that tells wrong usage in one line, as all errors are told, without argparse's synopsis before it."""

    def error(self, message: str) -> NoReturn:
        """End with exit status 2 and the message, escaped: what it quotes may be any bytes, such as a photo's name."""
        if sys.stderr is not None:  # where it is closed, argparse would write to standard output
            with contextlib.suppress(OSError):  # a full disk; argparse itself suppresses this from Python 3.11.4 on
                self.exit(2, f"{self.prog}: error: {printable(message)}; see {self.prog} --help\n")
        self.exit(2)


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
