"""Where each millisecond goes: time per operator type, before and after the rewrites: `python -m benchmarks.operators`.

The graphs are those that `benchmarks.prepare` wrote: as exported and as caplet ships them, in float and in 8 bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import START, plain_pixels
from benchmarks.machine import describe_machine
from benchmarks.outputs import add_output, now, output_file, write_results
from caplet.arguments import count

FOLDERS = {
    "plain": "float, as exported",
    "fp32": "float, rewritten",
    "plain-qdq": "8 bits, as exported",
    "int8": "8 bits, rewritten",
}
GRAPHS = ("encoder", "decoder")
_WARM_UP = 3
_KERNEL = "_kernel_time"  # the end of such events' names in onnxruntime's profile


def profile(graph: Path, feeds: dict[str, Any], *, threads: int, runs: int) -> dict[str, Any]:
    """Of every operator type that onnxruntime runs: the count, and the sum of its nodes' median milliseconds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as work:
        options.profile_file_prefix = str(Path(work, "profile"))
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        wanted = {value.name: feeds[value.name] for value in session.get_inputs()}
        for _ in range(_WARM_UP + runs):
            session.run(None, wanted)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event["name"].endswith(_KERNEL):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"] / 1000)
    operators: dict[str, dict[str, float]] = {}
    for (kind, _), milliseconds in nodes.items():
        entry = operators.setdefault(kind, {"count": 0, "milliseconds": 0.0})
        entry["count"] += 1
        entry["milliseconds"] += statistics.median(milliseconds[_WARM_UP:])
    ordered = sorted(operators.items(), key=lambda item: -item[1]["milliseconds"])
    return {
        "operators": dict(ordered),
        "count": sum(entry["count"] for entry in operators.values()),
        "milliseconds": sum(entry["milliseconds"] for entry in operators.values()),
    }


def measure(folder: Path, *, threads: int, runs: int) -> dict[str, Any]:
    """Profiles of all graphs that are there: graph → folder → the result of `profile`."""
    found: dict[str, dict[str, Any]] = {}
    for graph in GRAPHS:
        for name in FOLDERS:
            path = folder / name / f"{graph}.onnx"
            if path.exists():
                feeds = _feeds(folder, name)
                found.setdefault(graph, {})[name] = profile(path, feeds, threads=threads, runs=runs)
    return found


def _feeds(folder: Path, name: str) -> dict[str, Any]:
    """A photo for the encoder; for the decoder the encoder's outputs for it, and the start token."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    encoder = onnxruntime.InferenceSession(
        str(folder / name / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
    )
    height, width = encoder.get_inputs()[0].shape[1:3]
    pixels = plain_pixels(min((folder / "photos").glob("*.jpg")), (width, height))
    outputs = [output.name for output in encoder.get_outputs()]
    encoded = dict(zip(outputs, encoder.run(outputs, {"pixels": pixels}), strict=True))
    return {"pixels": pixels, "token": np.array([START]), **encoded}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="written by `python -m benchmarks.prepare`")
    parser.add_argument("--threads", type=count, default=1, help="default: %(default)s, which wastes none on waiting")
    parser.add_argument("--runs", type=count, default=40, help="of each graph (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two runs: that it works, not how fast it is")
    add_output(parser, "operators.json")
    arguments = parser.parse_args(argv)
    if not list((arguments.folder / "photos").glob("*.jpg")):
        parser.error(f"{arguments.folder}: no photos; run `python -m benchmarks.prepare` first")
    output = output_file(parser, arguments.output, "operators.json", whole=not arguments.quick)
    runs = 2 if arguments.quick else arguments.runs
    results = {
        "created": now(),
        "machine": describe_machine(),
        "threads": arguments.threads,
        "runs": runs,
        "quick": arguments.quick,
        "graphs": measure(arguments.folder, threads=arguments.threads, runs=runs),
    }
    write_results(output, results)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
