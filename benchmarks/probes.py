"""Probes that `benchmarks.product` runs in processes of their own: `python -m benchmarks.probes NAME ARGUMENT...`.

Each prints one JSON object as its last line on standard output.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.machine import memory_mb

_QUIET_SECONDS, _WATCHED_SECONDS = 0.2, 5.0
_BATCH = 32
_LARGE = (4000, 3000)
_TILE = 500


def command_memory(*arguments: str) -> dict[str, Any]:
    """Peak memory in MB of the `caplet` command; other imports of this process add next to nothing.

    Raises:
        SystemExit: the command failed, so its memory is not that of a caption.
    """
    from caplet.cli import main

    if status := main(arguments):
        sys.exit(status)
    return {"peak_mb": memory_mb()["peak"]}


def idle_cpu(bundle: str, photo: str) -> dict[str, Any]:
    """CPU seconds per second that the process takes, from 0.2 s after a caption on.

    Without this thread, which only sleeps: on some virtual machines, that alone is charged two milliseconds.
    """
    from caplet import Captioner

    captioner = Captioner(bundle)
    captioner.caption(photo)
    time.sleep(_QUIET_SECONDS)
    process, thread = time.process_time(), time.thread_time()
    time.sleep(_WATCHED_SECONDS)
    # The process' clock is read before and after this thread's, so that the difference is never negative.
    thread, process = time.thread_time() - thread, time.process_time() - process
    return {"cpu_share": (process - thread) / _WATCHED_SECONDS}


def batch(bundle: str, repetitions: str, *photos: str) -> dict[str, Any]:
    """Photos per second of 32 photos with that batch size, with the usual one, and one at a time, in turns."""
    from caplet import Captioner

    captioner = Captioner(bundle)
    many = list(islice(cycle(photos), _BATCH))
    ways: dict[str, Callable[[], Any]] = {
        "one_at_a_time": lambda: [captioner.caption(photo) for photo in many],
        "batch_of_32": lambda: list(captioner.caption_many(many, batch_size=_BATCH)),
        "usual_batches": lambda: list(captioner.caption_many(many)),
    }
    seconds = _in_turns(ways, int(repetitions))
    return {name: _BATCH / statistics.median(values) for name, values in seconds.items()}


def large_jpeg(folder: str, repetitions: str, *photos: str) -> dict[str, Any]:
    """Milliseconds from a 12-megapixel JPEG to pixels by caplet and by plain Pillow, in turns.

    The JPEG is a mosaic of sample photos, 500 pixels each, because one photo enlarged would hold less to decode.
    """
    import numpy as np
    from PIL import Image

    from benchmarks.engine import plain_pixels
    from caplet.image import load_pixels

    mosaic = Image.new("RGB", _LARGE)
    tiles = []
    for name in photos:
        with Image.open(name) as opened:
            tiles.append(opened.convert("RGB").resize((_TILE, _TILE), Image.Resampling.BICUBIC))
    corners = [(x, y) for y in range(0, _LARGE[1], _TILE) for x in range(0, _LARGE[0], _TILE)]
    for corner, tile in zip(corners, cycle(tiles)):
        mosaic.paste(tile, corner)
    path = Path(folder, "twelve-megapixels.jpg")
    mosaic.save(path, quality=90)

    plain = functools.partial(plain_pixels, path, (299, 299))
    seconds = _in_turns({"caplet": lambda: load_pixels(path), "pillow": plain}, int(repetitions))
    difference = np.abs(load_pixels(path).astype(int) - plain()[0])
    return {
        **{f"{name}_ms": 1000 * statistics.median(values) for name, values in seconds.items()},
        "mean_difference": float(difference.mean()),
    }


def growth(bundle: str, count: str, *photos: str) -> dict[str, Any]:
    """Seconds and peak memory in MB of `count` photos through `caption_many`."""
    from caplet import Captioner

    captioner = Captioner(bundle)
    started = time.perf_counter()
    for _ in captioner.caption_many(islice(cycle(photos), int(count))):
        pass
    return {"photos": int(count), "seconds": time.perf_counter() - started, "peak_mb": memory_mb()["peak"]}


def words(bundle: str, repetitions: str, photo: str) -> dict[str, Any]:
    """Milliseconds of greedy decoding by the number of words; the sentence goes on even where it would end."""
    from benchmarks.engine import plain_pixels
    from benchmarks.engine_caplet import Caplet

    path = Path(bundle)
    engine = Caplet(path.parent, 1, path.name, beam_size=1)
    encoded = engine.encode(plain_pixels(Path(photo), engine.size))
    ways: dict[str, Callable[[], Any]] = {
        str(count): functools.partial(engine.decode, encoded, count) for count in (6, 12, 24, 48)
    }
    seconds = _in_turns(ways, int(repetitions))
    return {"milliseconds": {count: 1000 * statistics.median(values) for count, values in seconds.items()}}


def _in_turns(ways: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each run of each way, after one untimed run of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for _ in range(repetitions):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return seconds


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    probe.__name__: probe for probe in (command_memory, idle_cpu, batch, large_jpeg, growth, words)
}

if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](*sys.argv[2:])))
