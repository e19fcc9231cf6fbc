"""Reading small files, or refusing them in one line."""

from __future__ import annotations

import json
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

from caplet_export.errors import ConfigurationError

DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error, SyntaxError, tokenize.TokenError,
)  # fmt: skip
"""What reading a damaged .npz or HDF5 file may raise: its bytes may ask for any compression, password or length, and
NumPy reads the headers of arrays with Python's own parser."""


def read_text(path: Path) -> str:
    """A text file's content, without the byte order mark that some editors put first.

    Raises:
        ConfigurationError: it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8: {error}") from error


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        ConfigurationError: as `read_text`; or it is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not JSON: {error}") from error
