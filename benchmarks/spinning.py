"""What is gained and lost if threads without work spin before they sleep: `python -m benchmarks.spinning`.

Captioners that differ in nothing else take turns in one process: one photo's encoder, a caption, and photos side by
side, alone and while another program keeps a core busy. Needs onnxruntime 1.26, the first to count in microseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from benchmarks.machine import describe_machine
from caplet.arguments import count

if TYPE_CHECKING:
    from caplet import Captioner

SPINS = (0, 10, 20, 50)
"""Microseconds; 0 sleeps at once."""
_TOGETHER = 16
_REST_SECONDS = 0.02


def measure(bundle: Path | None, photo: Path, threads: int, runs: int) -> dict[str, Any]:
    """Median wall and CPU milliseconds a photo of each task and spin, alone and beside a busy program."""
    from caplet import Captioner, sessions
    from caplet.image import load_pixels

    captioners = {}
    for spin in SPINS:
        with mock.patch.object(sessions, "_SPIN_MICROSECONDS", spin):
            captioners[spin] = Captioner(bundle, threads=threads)
    manifest = captioners[0].bundle.manifest
    pixels = load_pixels(photo, size=(manifest.width, manifest.height))[None]
    many = [photo] * _TOGETHER
    tasks: dict[str, tuple[int, Callable[[Captioner], Any]]] = {
        "encoder": (1, lambda captioner: captioner.sessions.encode(pixels)),
        "caption": (1, lambda captioner: captioner.caption(photo)),
        "side by side": (_TOGETHER, lambda captioner: list(captioner.caption_many(many))),
    }
    result: dict[str, Any] = {"bundle": manifest.name, "threads": threads}
    for company, others in (("alone", 0), ("beside a busy program", 1)):
        with _busy(others):
            result[company] = {task: _in_turns(captioners, run, photos, runs) for task, (photos, run) in tasks.items()}
    return result


def _in_turns(captioners: dict[int, Any], run: Callable[[Any], Any], photos: int, runs: int) -> dict[str, Any]:
    taken: dict[int, list[tuple[float, float]]] = {spin: [] for spin in captioners}
    for number in range(runs):
        for spin in list(captioners)[:: 1 if number % 2 else -1]:
            time.sleep(_REST_SECONDS)  # until the threads of the captioner before sleep
            run(captioners[spin])
            wall, cpu = time.perf_counter(), time.process_time()
            run(captioners[spin])
            taken[spin].append((time.perf_counter() - wall, time.process_time() - cpu))
    medians = {spin: 1000 * np.median(times, axis=0) / photos for spin, times in taken.items()}
    return {f"{spin} us": {"ms": round(ms, 3), "cpu_ms": round(cpu, 3)} for spin, (ms, cpu) in medians.items()}


@contextlib.contextmanager
def _busy(programs: int) -> Iterator[None]:
    """Keep that many other processes computing meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spinning", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="default: $CAPLET_MODEL, or the bundled model")
    parser.add_argument("--photo", type=Path, default=Path("tests/photos/astronaut.jpg"), help="(default: %(default)s)")
    parser.add_argument("--threads", type=count, default=2, help="(default: %(default)s)")
    parser.add_argument("--runs", type=count, default=40, help="of each, in turns (default: %(default)s)")
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    if tuple(map(int, machine["versions"]["onnxruntime"].split(".")[:2])) < (1, 26):
        parser.exit(
            1, "onnxruntime before 1.26 does not count the time that threads spin; there is nothing to compare\n"
        )
    result = measure(arguments.bundle, arguments.photo, arguments.threads, arguments.runs)
    print(json.dumps({"machine": machine, **result}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
