"""The errors of the export toolchain, each told in one line; users are also shown caplet's own errors."""

from __future__ import annotations

from pathlib import Path

from caplet.errors import ImageError

_OPTIONS = ("allow truncated images", "raise max_pixels if you trust it")
"""Remedies that are options of caplet, and none of the toolchain's."""


class ExportError(Exception):
    """Base of every error the toolchain raises on purpose; the command line prints it as one line."""


class DataError(ExportError, ValueError):
    """The data set cannot be used: a folder, token file, split list or image is missing or unreadable."""


class StoreError(ExportError, OSError):
    """The feature store is missing, damaged, made from something else, or cannot be written."""


class ConfigurationError(ExportError, ValueError):
    """A configuration, checkpoint or other file cannot be used: wrong values, another model's weights, unreadable."""


class ParityError(ExportError, ArithmeticError):
    """The converted or rewritten graph does not say what the original says."""


def no_run(folder: Path) -> ConfigurationError:
    """The error about a folder that should hold a trained run, and holds none: perhaps another program's checkpoint."""
    return ConfigurationError(f"{folder}: no trained run here; give the folder of a run that has finished an epoch")


def in_one_line(text: object) -> str:
    """What a file or another library's error says, in one line that is not too long to be quoted."""
    return " ".join(str(text).split())[:200]


def without_options(error: ImageError) -> ImageError:
    """The error about a photo, whose remedies are only those that there are in the toolchain."""
    remedies = [remedy for remedy in error.remedy.split(", or ") if remedy not in _OPTIONS]
    return ImageError(error.subject, error.cause, ", or ".join(remedies))
