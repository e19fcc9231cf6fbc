"""`caplet bench`: how fast and how large caplet is on this machine, stage by stage."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np

from caplet.bundle import Bundle
from caplet.captioner import Captioner
from caplet.decode import search
from caplet.errors import ArgumentError, CapletError, printable
from caplet.image import load_pixels
from caplet.inputs import STDIN
from caplet.machine import describe_cpu, versions
from caplet.output import tell
from caplet.threads import usable_threads

_WARM_UP = 3  # captions before measuring; the first ones set up memory
_SWEEP_BATCHES = (1, 4, 8)  # larger ones are not searched together
_FRESH_STARTS = 3
# Runs the command in a process of its own and prints that process's peak memory. VmHWM starts anew with each program;
# getrusage's figure would include the parent's memory. The file is read as bytes because it also has the program's
# name, cut after 15 bytes. Windows fills PROCESS_MEMORY_COUNTERS, whose second word is the peak, for the handle of a
# process; -1 is its own. `_fresh_start` puts `import sys` in front.
_FRESH = """
from pathlib import Path
from caplet.cli import main
status = main(sys.argv[1:])
if sys.platform == "win32":
    import ctypes
    counters = (ctypes.c_size_t * 9)()
    ctypes.windll.kernel32.K32GetProcessMemoryInfo(ctypes.c_void_p(-1), counters, ctypes.sizeof(counters))
    peak = counters[1] >> 10
else:
    memory = Path("/proc/self/status")
    lines = memory.read_bytes().splitlines() if memory.exists() else []
    peak = next((int(line.split()[1]) for line in lines if line.startswith(b"VmHWM")), 0)
print(f"peak kilobytes: {peak}", file=sys.stderr)
sys.exit(status)
"""
_PEAK = re.compile(rb"^peak kilobytes: (\d+)\r?$", re.MULTILINE)  # Windows ends lines in two characters


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; returns the exit status. Raises CapletError."""
    report = measure(arguments)
    tell(json.dumps(report, indent=2) + "\n" if arguments.json else _as_text(report))
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything `caplet bench` reports, ready for JSON. Times are milliseconds unless the name says otherwise."""
    captioner = Captioner(arguments.model, threads=arguments.threads)
    captioner.caption_many((), batch_size=arguments.batch_size, beam_size=arguments.beam)  # refuses a bad number
    photo = arguments.photo or _golden_photo(captioner.bundle)
    _check_photo(photo, captioner)
    fresh = _fresh_start(arguments, photo)
    stages, words, cpu_seconds = _stages(captioner, photo, arguments.beam, arguments.runs)
    threads = usable_threads(arguments.threads)
    report = {
        "versions": versions(),
        "cpu": describe_cpu(),
        "model": captioner.bundle.manifest.name,
        "model_sha256": captioner.bundle.digest,
        "photo": photo,
        "beam_size": captioner.decoding(arguments.beam).beam_size,
        "threads": vars(threads),
        "runs": arguments.runs,
        "words": words,
        "stages": stages,
        "cpu_seconds_per_photo": cpu_seconds,
        "photos_per_second": {
            "one_at_a_time": 1000 / stages["total"]["mean"],
            f"batches_of_{arguments.batch_size}": _throughput(captioner, photo, arguments, arguments.batch_size),
        },
        **fresh,
    }
    if arguments.sweep:
        report["sweep"] = _sweep(arguments, photo, threads.count)
    return report


def _golden_photo(bundle: Bundle) -> str:
    if not bundle.manifest.golden:
        raise ArgumentError("PHOTO", "the model has no photo of its own", "give one")
    return str(bundle.path / bundle.manifest.golden[0].file)


def _check_photo(photo: str, captioner: Captioner) -> None:
    """Raise CapletError for a photo that cannot be captioned, or is not a file: a pipe could be read only once."""
    if os.path.exists(photo) and not os.path.isfile(photo):
        raise ArgumentError("PHOTO", f"{photo} is not a file", "give one")
    captioner.caption(photo)


def _stages(
    captioner: Captioner, photo: str, beam_size: int | None, runs: int
) -> tuple[dict[str, dict[str, float]], int, float]:
    """Mean and percentiles of each stage, number of words in the caption, and CPU seconds per photo.

    decode: photo to pixels; encode: pixels to features; step: the next word of all hypotheses; search: all steps and
    the work between them; total: `Captioner.caption`, run and timed apart from the other stages.
    """
    manifest, decoding = captioner.bundle.manifest, captioner.decoding(beam_size)
    times: dict[str, list[float]] = {name: [] for name in ("decode", "encode", "step", "search", "total")}

    def timed(name: str, work: Callable[..., Any], *inputs: Any) -> Any:
        started = time.perf_counter()
        result = work(*inputs)
        times[name].append(1000 * (time.perf_counter() - started))
        return result

    load = partial(load_pixels, photo, size=(manifest.width, manifest.height))
    caption = partial(captioner.caption, photo, beam_size=beam_size)
    step = partial(timed, "step", captioner.sessions.step)
    words, cpu_seconds = 0, 0.0
    for number in range(_WARM_UP + runs):
        if number == _WARM_UP:
            for values in times.values():
                values.clear()
            cpu_seconds = 0.0
        pixels = timed("decode", load)
        encoded = timed("encode", captioner.sessions.encode, pixels[None])
        timed("search", search, step, encoded, decoding)
        before = time.process_time()
        words = len(timed("total", caption).words)
        cpu_seconds += time.process_time() - before
    return {name: _percentiles(values) for name, values in times.items()}, words, cpu_seconds / runs


def _percentiles(values: list[float]) -> dict[str, float]:
    p50, p90, p99 = (float(value) for value in np.percentile(values, [50, 90, 99]))
    return {"mean": float(np.mean(values)), "p50": p50, "p90": p90, "p99": p99}


def _throughput(captioner: Captioner, photo: str, arguments: argparse.Namespace, batch_size: int) -> float:
    """Photos per second through `caption_many`, over at least four batches."""
    photos = max(arguments.runs, 4 * batch_size)
    caption_many = partial(captioner.caption_many, batch_size=batch_size, beam_size=arguments.beam)
    for _ in caption_many(repeat(photo, batch_size)):
        pass  # the first batch of a size sets up its memory
    started = time.perf_counter()
    for _ in caption_many(repeat(photo, photos)):
        pass
    return float(photos / (time.perf_counter() - started))


def _fresh_start(arguments: argparse.Namespace, photo: str) -> dict[str, float | None]:
    """Seconds that a new process takes for one caption (the median of a few), and its peak memory in MB, if known.

    Both are unknown within an app by PyInstaller, whose executable is no Python, or by Nuitka, which names one that is
    not there.
    """
    if getattr(sys, "frozen", False) or not os.path.exists(sys.executable or ""):
        return {"first_caption_seconds": None, "peak_rss_mb": None}
    # The new process imports from the same places as this one; `-c` alone would also import from the current folder.
    path = [entry for entry in sys.path if entry]
    command = [sys.executable, "-c", f"import sys\nsys.path[:] = {path!r}\n{_FRESH}"]
    options = {"--model": arguments.model, "--threads": arguments.threads, "--beam": arguments.beam}
    command += [f"{option}={value}" for option, value in options.items() if value is not None]
    command += ["--", "./-" if photo == STDIN else photo]
    seconds, peaks = [], []
    for _ in range(_FRESH_STARTS):
        started = time.perf_counter()
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        seconds.append(time.perf_counter() - started)
        peak = _PEAK.search(process.stderr)
        if process.returncode != 0 or peak is None:
            said = _PEAK.sub(b"", process.stderr).decode(errors="replace")
            told = said.strip().split("\n")[-1].removeprefix("caplet: ")
            raise CapletError("bench", f"a new process gave no caption ({told or f'exit status {process.returncode}'})")
        peaks.append(int(peak[1]))
    return {"first_caption_seconds": float(np.median(seconds)), "peak_rss_mb": max(peaks) * 1024 / 1e6 or None}


def _sweep(arguments: argparse.Namespace, photo: str, most: int) -> list[dict[str, float]]:
    """Photos per second for 1, 2, 4, ... threads and some batch sizes."""
    counts = sorted({*(2**power for power in range(most.bit_length())), most})
    results: list[dict[str, float]] = []
    for count in counts:
        captioner = Captioner(arguments.model, threads=count)
        for batch_size in _SWEEP_BATCHES:
            rate = _throughput(captioner, photo, arguments, batch_size)
            results.append({"threads": count, "batch_size": batch_size, "photos_per_second": rate})
    return results


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _as_text(report: dict[str, Any]) -> str:
    threads = report["threads"]
    lines = [
        f"{report['model']} on {report['cpu']['name'] or report['cpu']['architecture']}, "
        f"{_counted(threads['count'], 'thread')} ({threads['reason']}), "
        f"onnxruntime {report['versions']['onnxruntime']}",
        f"{printable(report['photo'])}: {_counted(report['words'], 'word')}, beam {report['beam_size']}, "
        f"{_counted(report['runs'], 'run')}",
        "",
        f"{'milliseconds':<14}{'p50':>9}{'p90':>9}{'p99':>9}",
    ]
    for name, stage in report["stages"].items():
        lines.append(f"{name:<14}{stage['p50']:>9.2f}{stage['p90']:>9.2f}{stage['p99']:>9.2f}")
    lines.append("")
    for name, rate in report["photos_per_second"].items():
        lines.append(f"{name.replace('_', ' ')}: {rate:.1f} photos a second")
    lines.append(f"CPU time per photo: {1000 * report['cpu_seconds_per_photo']:.1f} ms")
    if report["first_caption_seconds"] is not None:
        lines.append(f"process start to first caption: {report['first_caption_seconds']:.2f} s")
    if report["peak_rss_mb"] is not None:
        lines.append(f"peak memory of a process with one caption: {report['peak_rss_mb']:.0f} MB")
    if "sweep" in report:
        lines += ["", f"{'threads':>7}{'batch':>7}{'photos a second':>17}"]
        for entry in report["sweep"]:
            lines.append(f"{entry['threads']:>7}{entry['batch_size']:>7}{entry['photos_per_second']:>17.1f}")
    return "".join(line + "\n" for line in lines)
