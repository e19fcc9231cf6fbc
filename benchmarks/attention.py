"""Whether attention falls on the thing: `python -m benchmarks.attention DATA`.

Flickr8k has no boxes to compare heat maps with. Instead, for each noun in the caption of a dev photo, a quarter of the
photo is blurred beyond recognition (where the noun had most attention, where it had least, or anywhere), and the photo
is captioned again. If attention falls on the thing, the noun goes with the first quarter and stays with the second.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from caplet import CapletError, Captioner
from caplet.arguments import count
from caplet.image import load_pixels
from caplet_export.errors import ExportError
from caplet_export.flickr8k import read_dataset

_LIST = """
ball bike bicycle bird boat boy bus camera car cat child children crowd dog dogs field girl girls grass hat
helmet horse man men motorcycle people person player players pool racer ramp road rock rocks skateboard
skateboarder snow snowboarder surfboard surfer tree trees wave woman women
"""
NOUNS = frozenset(_LIST.split())
"""Things that photos show and captions name often; no roles, materials or times of day."""
GRID, WINDOW = 8, 4
WAYS = ("most", "least", "anywhere")


def windows(attention: NDArray[np.float32], random: np.random.Generator) -> dict[str, tuple[int, int]]:
    """Row and column of the top left cells of three quarters: with most attention, with least, and drawn at random.

    Args:
        attention: [GRID,GRID], a word's shares.
        random: draws the third quarter.
    """
    places = [(y, x) for y in range(GRID - WINDOW + 1) for x in range(GRID - WINDOW + 1)]
    mass = [float(attention[y : y + WINDOW, x : x + WINDOW].sum()) for y, x in places]
    drawn = places[int(random.integers(len(places)))]
    return {"most": places[int(np.argmax(mass))], "least": places[int(np.argmin(mass))], "anywhere": drawn}


def blur(image: Image.Image, window: tuple[int, int]) -> Image.Image:
    """The photo with the quarter at `window` blurred beyond recognition; `window` as in `windows`."""
    top, left = window[0] * image.height // GRID, window[1] * image.width // GRID
    box = left, top, left + image.width * WINDOW // GRID, top + image.height * WINDOW // GRID
    result = image.copy()
    result.paste(image.filter(ImageFilter.GaussianBlur(max(image.size) / 8)).crop(box), box[:2])
    return result


def measure(captioner: Captioner, photos: Sequence[Path], seed: int = 0) -> dict[str, Any]:
    """Percent of nouns still said, by where the photo was blurred, and of their attention in the `most` quarter."""
    random = np.random.default_rng(seed)
    said = dict.fromkeys(WAYS, 0)
    mass, nouns = 0.0, 0
    size = captioner.bundle.manifest.width, captioner.bundle.manifest.height
    for photo in photos:
        caption = captioner.caption(photo)
        places = [place for place, word in enumerate(caption.words) if word in NOUNS]
        if not places:
            continue
        image = Image.fromarray(load_pixels(photo, size=size))
        for place in places:
            nouns += 1
            quarters = windows(caption.attention[place], random)
            y, x = quarters["most"]
            mass += float(caption.attention[place, y : y + WINDOW, x : x + WINDOW].sum())
            for way in WAYS:
                said[way] += caption.words[place] in captioner.caption(blur(image, quarters[way])).words
    return {
        "bundle": captioner.bundle.manifest.name,
        "photos": len(photos),
        "nouns": nouns,
        "attention_in_most_attended_quarter": round(100 * mass / max(nouns, 1), 1),
        "noun_still_said": {way: round(100 * count / max(nouns, 1), 1) for way, count in said.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="Flickr8k, as for `caplet-export`")
    parser.add_argument("--bundle", type=Path, help="default: $CAPLET_MODEL, or the bundled model")
    parser.add_argument("--photos", type=count, default=300, help="of the dev split (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        dataset, captioner = read_dataset(arguments.data), Captioner(arguments.bundle)
        photos = [dataset.path(name) for name in dataset.split("dev")[: arguments.photos]]
    except (CapletError, ExportError) as error:
        parser.exit(1, f"{error}\n")
    print(json.dumps(measure(captioner, photos), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
