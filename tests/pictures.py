"""What the tests of images share: pictures as files, Pillow's pixels as the reference, and refusals."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from caplet.errors import CapletError
from caplet.image import load_pixels


def plain(image: Image.Image, size: tuple[int, int] = (299, 299)) -> NDArray[np.uint8]:
    """Pixels by Pillow alone, as the training features were computed from them: uint8 [height,width,3]."""
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """The contents of an image file; skips the test if this Pillow cannot write the format."""
    if file_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def refusal(source: Any, **options: Any) -> CapletError:
    """The error that `load_pixels` raises, whose message has to be one line."""
    with pytest.raises(CapletError) as caught:
        load_pixels(source, **options)
    assert "\n" not in str(caught.value)
    return caught.value
