"""What weights that cannot saturate save: `python -m benchmarks.saturation`.

Runs the graphs of an 8-bit bundle in onnxruntime with its exact kernels and with its usual ones, in turns, in one
process whose threads do not spin. On x86 without VNNI, the usual kernels are faster, and right only if no sum
saturates; on other processors, caplet never asks for the exact ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from caplet.arguments import count

KERNELS = {"exact": "1", "usual": "0"}


def measure(bundle_path: Path | None, photo: Path, threads: int, runs: int) -> dict[str, Any]:
    """Milliseconds (p50, p90) of the encoder for a photo and of the decoder for a word, the ratio of the medians, and
    whether every output is the same to the last bit.
    """
    import onnxruntime

    from caplet.bundle import load_bundle
    from caplet.image import load_pixels

    bundle = load_bundle(bundle_path)
    pixels = load_pixels(photo, size=(bundle.manifest.width, bundle.manifest.height))[None]
    feeds: dict[str, Any] = {"pixels": pixels}
    result: dict[str, Any] = {
        "bundle": bundle.manifest.name,
        "saturates": bundle.manifest.saturates,
        "threads": threads,
    }
    for name, graph in (("encoder", bundle.encoder), ("decoder", bundle.decoder)):
        sessions = {}
        for kernels, value in KERNELS.items():
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads if name == "encoder" else 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.add_session_config_entry("session.x64quantprecision", value)
            sessions[kernels] = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        outputs = {kernels: session.run(None, feeds) for kernels, session in sessions.items()}
        taken: dict[str, list[float]] = {kernels: [] for kernels in KERNELS}
        for _ in range(runs if name == "encoder" else 10 * runs):
            for kernels, session in sessions.items():
                start = time.perf_counter()
                session.run(None, feeds)
                taken[kernels].append(1000 * (time.perf_counter() - start))
        result[name] = {kernels: np.percentile(times, (50, 90)).round(3).tolist() for kernels, times in taken.items()}
        result[name]["usual / exact"] = round(result[name]["usual"][0] / result[name]["exact"][0], 3)
        same = all(map(np.array_equal, outputs["exact"], outputs["usual"]))
        result[name]["same outputs"] = same
        names = [output.name for output in sessions["exact"].get_outputs()]
        feeds = {**dict(zip(names, outputs["exact"], strict=True)), "token": np.array([1])}
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saturation", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="default: $CAPLET_MODEL, or the bundled model")
    parser.add_argument("--photo", type=Path, default=Path("tests/photos/astronaut.jpg"), help="(default: %(default)s)")
    parser.add_argument("--runs", type=count, default=100, help="of each, alternating (default: %(default)s)")
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    results = [measure(arguments.bundle, arguments.photo, threads, arguments.runs) for threads in (1, 2)]
    print(json.dumps({"machine": machine, "results": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
