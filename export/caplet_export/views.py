"""Views of a photo: as it is, mirrored, or cropped at random with colour jitter. The more there are, the later a
captioner overfits to the photos.
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from caplet_export.errors import ConfigurationError

PLAIN, FLIP = "plain", "flip"
_CROP = re.compile(r"crop([1-9]\d*)")
_SMALLEST_AREA = 0.4
_ASPECT = 4 / 3
_COLOR_JITTER = 0.4


def check_view(view: str) -> str:
    """The view's name, if it is one: `plain`, `flip`, `crop1`, `crop2` and so on.

    Raises:
        ConfigurationError: it is not the name of a view.
    """
    if view not in (PLAIN, FLIP) and not _CROP.fullmatch(view):
        raise ConfigurationError(f"{view}: not a view of a photo (plain, flip, or crop1, crop2, …)")
    return view


def apply_view(view: str, name: str, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The view of a photo uint8 [H,W,3], in the same size.

    `flip` mirrors it. `crop<n>` takes a part of 40 to 100 % of its area whose sides are stretched by up to 4:3 against
    the whole (Szegedy et al., CVPR 2015), enlarges it, mirrors one in two at random, and changes brightness, contrast
    and saturation by up to 40 %; the n-th crop of a photo of this name is always the same.
    """
    if view == PLAIN:
        return pixels
    if view == FLIP:
        return pixels[:, ::-1]
    number = _CROP.fullmatch(check_view(view))
    assert number is not None
    random = np.random.default_rng([int(number[1]), zlib.crc32(name.encode("utf-8", "surrogateescape"))])
    height, width = pixels.shape[:2]
    area = random.uniform(_SMALLEST_AREA, 1.0)
    aspect = math.exp(random.uniform(-math.log(_ASPECT), math.log(_ASPECT)))
    across, down = min(1.0, math.sqrt(area * aspect)) * width, min(1.0, math.sqrt(area / aspect)) * height
    left, top = random.uniform(0, width - across), random.uniform(0, height - down)
    box = (left, top, left + across, top + down)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box=box)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(random.uniform(1 - _COLOR_JITTER, 1 + _COLOR_JITTER))
    return np.asarray(image)
