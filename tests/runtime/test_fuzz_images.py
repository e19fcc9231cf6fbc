"""Mutated images of every format Pillow can write: decoded or refused in one line, soon, in bounded memory.

A few hundred run with the tests; `CAPLET_FUZZ=10000` runs as many, and so does

    python tests/runtime/test_fuzz_images.py 10000

Case n is the same on every machine with the same Pillow, so a failure is repeated with `... 1 n`.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from caplet.errors import ImageError
from caplet.image import load_pixels
from caplet.image_limits import MAX_PIXELS

PHOTO = Path(__file__).parents[1] / "photos" / "cat.jpg"
MOST_SECONDS = 5.0
MOST_BYTES = 30 * MAX_PIXELS + (100 << 20)
"""What the costliest picture within the limit may need, and Python with numpy, Pillow and the originals."""


def test_mutated_images_are_decoded_or_refused() -> None:
    count = os.environ.get("CAPLET_FUZZ", "400")
    done = subprocess.run([sys.executable, __file__, count], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["cases"] == int(count)
    # Both happen, or nothing was tested.
    assert report["decoded"] > 0.02 * int(count) and report["refused"] > 0.3 * int(count)
    assert report["slowest_seconds"] < MOST_SECONDS
    if report["peak_bytes"] is not None:
        assert report["peak_bytes"] < MOST_BYTES


def test_a_case_that_crashes_is_named() -> None:
    program = f"""
import faulthandler, os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_fuzz_images as fuzz
faulthandler.enable()
cases = iter(range(3))
fuzz.outcome = lambda *_, **__: "decoded" if next(cases) < 2 else os.abort()
fuzz.run(9, first=40)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    before, _, _ = done.stderr.partition("Fatal Python error")
    assert before.split()[-2:] == ["case", "42"]


def test_cases_can_be_repeated() -> None:
    originals = written_by_pillow()
    assert [mutated(originals, n) for n in range(20)] == [mutated(originals, n) for n in range(20)]
    assert len({mutated(originals, n) for n in range(200)}) > 190


READ = ("JPEG", "MPO", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
"""Formats caplet reads; the others Pillow can write have to be refused, which is soon tested."""

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "JPEG": [{"progressive": True}, {"subsampling": 2, "restart_marker_blocks": 2}],
    "PNG": [{"transparency": 0}, {"bits": 2}],
    "GIF": [{"transparency": 0, "disposal": 2}, {"interlace": False}],
    "TIFF": [
        *({"compression": name} for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4", "packbits")),
        {"big_tiff": True},
    ],
    "WEBP": [{"lossless": True}],
    "JPEG2000": [{"irreversible": True, "num_resolutions": 3}, {"no_jp2": True}, {"tile_size": (16, 16)}],
}


NOT_REFUSED = {"group4": ("1",), "jpeg": ("RGB", "RGBA", "L", "LA", "CMYK", "YCbCr", "LAB")}
"""Modes by compression of TIFFs: where libtiff refuses others, Pillow 12 (the last for Python 3.10) damages memory."""


def written_by_pillow() -> dict[str, list[bytes]]:
    """By format, a small photo in every mode Pillow can write, plus structures that decoders trip over."""
    Image.init()
    photo = Image.open(PHOTO).convert("RGB").resize((48, 36))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    usual: list[dict[str, Any]] = [
        {},
        {"exif": exif, "icc_profile": PHOTO.read_bytes()[:400]},
        {"save_all": True, "append_images": [photo.rotate(90), photo.rotate(180)]},
    ]
    files: dict[str, set[bytes]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file_format in sorted(Image.SAVE):
            for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"):
                image = Image.new("LAB", photo.size, 99) if mode == "LAB" else photo.convert("L").convert(mode)
                for options in (*usual, *VARIANTS.get(file_format, [])) if file_format in READ else usual[:1]:
                    if mode not in NOT_REFUSED.get(options.get("compression", ""), (mode,)):
                        continue
                    file = io.BytesIO()
                    try:
                        (photo if mode == "RGB" else image).save(file, file_format, **options)
                    except Exception:  # not every format takes every mode and option
                        continue
                    files.setdefault(file_format, set()).add(file.getvalue())
    for header, size in ((b"P5 48 36 99\n", 1), (b"P5 48 36 1023\n", 2), (b"P6 48 36 1023\n", 6)):  # not by Pillow
        files["PPM"].add(header + (2 * photo.tobytes())[: 48 * 36 * size])
    return {file_format: sorted(contents) for file_format, contents in files.items()}


def mutated(originals: dict[str, list[bytes]], number: int) -> bytes:
    rng = random.Random(number)

    def original() -> bytes:
        read = [file_format for file_format in READ if file_format in originals]
        return rng.choice(originals[rng.choice(read if rng.random() < 0.9 else list(originals))])

    data = bytearray(original())
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.choice(("bit", "byte", "word", "head", "cut", "splice", "repeat", "drop"))
        at = rng.randrange(len(data) + 1)
        if kind == "bit" and data:
            for _ in range(rng.choice((1, 3, 20))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "byte" and data:
            data[at % len(data)] = rng.choice((0, 1, 127, 128, 254, 255))
        elif kind == "word":
            data[at : at + 4] = rng.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(4, "big")
        elif kind == "head" and data:  # where sizes, counts and offsets are
            data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
        elif kind == "cut":
            del data[at:]
        elif kind == "splice":
            other = original()
            data[at:] = other[rng.randrange(len(other)) :]
        elif kind == "repeat":
            data[at:at] = data[at : at + rng.randrange(1, 200)] * rng.choice((1, 2, 50))
        elif kind == "drop":
            del data[at : at + rng.randrange(1, 100)]
    return bytes(data)


def outcome(data: bytes, *, allow_truncated: bool) -> str:
    try:
        pixels = load_pixels(data, allow_truncated=allow_truncated)
    except ImageError as error:
        message = str(error)
    else:
        assert pixels.shape == (299, 299, 3) and pixels.dtype == np.uint8
        return "decoded"
    assert message.startswith("<bytes>: ") and "\n" not in message, message
    return "refused"


def run(count: int, first: int) -> dict[str, Any]:
    """Decode `count` mutated images; anything but pixels or an ImageError ends the run with its traceback."""
    warnings.simplefilter("ignore")
    originals = written_by_pillow()
    outcomes: Counter[str] = Counter()
    slowest, slowest_case = 0.0, first
    for number in range(first, first + count):
        data = mutated(originals, number)
        # A crash or a hang cannot be caught: its traceback is written, after the number of the case.
        print(f"\rcase {number}", end=" ", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(10 * MOST_SECONDS, exit=True)
        start = time.thread_time()
        outcomes[outcome(data, allow_truncated=number % 2 == 0)] += 1
        seconds = time.thread_time() - start
        if seconds > slowest:
            slowest, slowest_case = seconds, number
    faulthandler.cancel_dump_traceback_later()
    return {
        "cases": count,
        "originals": sum(map(len, originals.values())),
        **outcomes,
        "slowest_seconds": round(slowest, 3),
        "slowest_case": slowest_case,
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int | None:
    """Peak resident memory of this program; `ru_maxrss` would include that of the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux
        return None
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    faulthandler.enable()
    arguments = [int(argument) for argument in sys.argv[1:]]
    print(json.dumps(run(arguments[0] if arguments else 10_000, arguments[1] if len(arguments) > 1 else 0)))
else:
    pytestmark = pytest.mark.filterwarnings("ignore")
