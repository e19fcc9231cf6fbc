"""Measure caplet as a product: `python -m benchmarks.product` (start, memory, sizes, large photos, batches, idling)."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, distributions, installed_mb
from benchmarks.outputs import ROOT, add_output, now, output_file, write_results
from benchmarks.peers import bundle_identity
from benchmarks.prepare import write_photos
from caplet.arguments import count

_IMPORTS = ("onnxruntime", "numpy", "PIL")
_BARE_IMPORT = "import onnxruntime, PIL.Image"


def measure(bundle: Path, wheel: Path | None, *, repetitions: int, photos: int) -> dict[str, Any]:
    """All measurements; without the sizes of the wheel where there is none."""
    with tempfile.TemporaryDirectory() as work:
        files = [str(path) for path in write_photos(Path(work, "photos"))]
        first = files[0]
        return {
            "created": now(),
            "machine": describe_machine(),
            **bundle_identity(bundle),
            "repetitions": repetitions,
            "cold_start": cold_start(bundle, first, repetitions),
            "memory": _probe("command_memory", "--model", bundle, first),
            "idle": _probe("idle_cpu", bundle, first),
            "large_jpeg": _probe("large_jpeg", work, repetitions, *files),
            "batch": _probe("batch", bundle, max(1, repetitions // 4), *files),
            "words": _probe("words", bundle, repetitions, first),
            "growth": [_probe("growth", bundle, count, *files) for count in (photos, 4 * photos)],
            "sizes": sizes(wheel),
        }


def cold_start(bundle: Path, photo: str, repetitions: int) -> dict[str, Any]:
    """Seconds of a fresh process that captions a photo, and of one that imports onnxruntime and Pillow, in turns.

    Both find their modules compiled, as pip leaves them; where Python is told to write no bytecode, the first would
    otherwise compile caplet at every start.
    """
    commands = {
        "caption": [sys.executable, "-m", "caplet", "--model", str(bundle), photo],
        "imports": [sys.executable, "-c", _BARE_IMPORT],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for number in range(repetitions + 1):
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=environment)
                if number:  # the first ones compile, and read files that later ones find in memory
                    seconds[name].append(time.perf_counter() - started)
    return {
        **{f"{name}_seconds": statistics.median(values) for name, values in seconds.items()},
        "samples": seconds,
    }


def sizes(wheel: Path | None) -> dict[str, Any]:
    """MB of the wheel, of its files unpacked, and of all that it requires, as installed here."""
    found = distributions(_IMPORTS)
    required = {
        "required_mb": installed_mb(_IMPORTS),
        "required": {name: distribution.version for name, distribution in sorted(found.items())},
    }
    if wheel is None:
        return required
    with zipfile.ZipFile(wheel) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist()) / 1e6
    return {
        **required,
        "wheel": wheel.name,
        "wheel_mb": wheel.stat().st_size / 1e6,
        "unpacked_mb": unpacked,
        "installed_mb": unpacked + required["required_mb"],  # type: ignore[operator]
    }


def build_wheel(folder: Path) -> Path:
    """Build caplet's wheel with the hatchling that is installed here."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def _probe(name: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.probes", name, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.product", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: $CAPLET_MODEL, or the bundled model")
    parser.add_argument("--wheel", type=Path, help="default: build one")
    parser.add_argument("--no-wheel", action="store_true", help="leave the sizes of the wheel out")
    parser.add_argument("--repetitions", type=count, default=20, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="two repetitions: that it works, not how fast it is")
    add_output(parser, "product.json")
    arguments = parser.parse_args(argv)
    from caplet.bundle import locate_bundle
    from caplet.errors import CapletError

    try:
        bundle = locate_bundle(arguments.bundle).resolve()
    except CapletError as error:
        parser.error(str(error))
    if arguments.wheel and not arguments.wheel.is_file():
        parser.error(f"{arguments.wheel}: no such file")
    output = output_file(parser, arguments.output, "product.json", whole=not arguments.quick)
    repetitions, photos = (2, 4) if arguments.quick else (arguments.repetitions, 100)
    with tempfile.TemporaryDirectory() as work:
        wheel = None if arguments.no_wheel else arguments.wheel or build_wheel(Path(work))
        results = measure(bundle, wheel, repetitions=repetitions, photos=photos)
    results["quick"] = arguments.quick
    write_results(output, results)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
