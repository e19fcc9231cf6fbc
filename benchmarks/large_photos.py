"""What reading large photos the quick way does to captions: `python -m benchmarks.large_photos DATA [--heic]`.

Photos of the dev split, which are small, are enlarged to 12 megapixels and saved as JPEGs, or to one and saved as HEIC
with a small thumbnail. Each is captioned twice: as caplet reads the file, and from all its pixels, resized by Pillow.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pillow_heif
from PIL import Image

from benchmarks.engine import plain_pixels
from caplet import CapletError, Captioner
from caplet.arguments import count
from caplet_export.errors import ExportError
from caplet_export.flickr8k import read_dataset
from caplet_export.metrics import ImageStatistics, paired_bootstrap, references_of

pillow_heif.register_heif_opener()  # with Pillow

_THUMBNAIL = 312
"""Pixels of a thumbnail's shorter side, as phones write them of 416x312, of which caplet needs 299."""


def enlarge(photo: Path, *, heic: bool = False) -> bytes:
    """The photo in its proportions as a JPEG of 12 megapixels, or a HEIC of one megapixel with a thumbnail."""
    with Image.open(photo) as image:
        scale = ((1e6 if heic else 12e6) / (image.width * image.height)) ** 0.5
        size = round(image.width * scale), round(image.height * scale)
        large, written = image.convert("RGB").resize(size, Image.Resampling.BICUBIC), io.BytesIO()
    if heic:
        large.save(written, "HEIF", thumbnails=[math.ceil(_THUMBNAIL * max(size) / min(size))])
    else:
        large.save(written, "JPEG", quality=90)
    return written.getvalue()


def compare(data: Path, bundle: Path | None, photos: int, *, heic: bool = False) -> dict[str, Any]:
    """All scores both ways, the 95% interval of the difference in CIDEr-D, and how many captions are the same."""
    captioner, dataset = Captioner(bundle), read_dataset(data)
    names = list(dataset.split("dev"))[:photos]
    references = references_of(dataset, names)
    size = captioner.bundle.manifest.width, captioner.bundle.manifest.height
    captions: dict[str, dict[str, list[str]]] = {"caplet": {}, "pillow": {}}
    for name in names:
        photo = enlarge(dataset.path(name), heic=heic)
        captions["caplet"][name] = list(captioner.caption(photo).words)
        captions["pillow"][name] = list(captioner.caption(plain_pixels(io.BytesIO(photo), size)[0]).words)
    quick, whole = (ImageStatistics.of(captions[way], references) for way in ("caplet", "pillow"))
    difference = paired_bootstrap(whole, quick)["cider_d"]
    return {
        "photos": len(names),
        "bundle": captioner.bundle.manifest.name,
        "caplet": quick.scores(),
        "pillow": whole.scores(),
        "cider_d_difference": [difference.low, difference.high],
        "same_captions": sum(captions["caplet"][name] == captions["pillow"][name] for name in names),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_photos", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="Flickr8k, as for `caplet-export`")
    parser.add_argument("--bundle", type=Path, help="default: $CAPLET_MODEL, or the bundled model")
    parser.add_argument("--photos", type=count, default=200, help="of the dev split (default: %(default)s)")
    parser.add_argument("--heic", action="store_true", help="HEIC with thumbnails, in place of JPEG")
    arguments = parser.parse_args(argv)
    try:
        print(json.dumps(compare(arguments.data, arguments.bundle, arguments.photos, heic=arguments.heic), indent=1))
    except (CapletError, ExportError) as error:
        parser.exit(1, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
