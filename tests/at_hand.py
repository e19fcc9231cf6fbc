"""Data with which some tests prove more, in the folder that `CAPLET_DATA` names, or `shared/` beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DATA = Path(os.environ.get("CAPLET_DATA") or Path(__file__).parents[2] / "shared")
FLICKR8K_TOKENS = _DATA / "flickr8k" / "Flickr8k.token.txt"
ENCODER_WEIGHTS = _DATA / "weights" / "inception_v3_notop.weights.h5"


def needs(file: Path) -> pytest.MarkDecorator:
    """A mark that skips a test if the file is not there."""
    return pytest.mark.skipif(not file.exists(), reason=f"no {file}")
