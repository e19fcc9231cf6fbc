"""Tables and the chart from the JSON of `peers`, `product` and `operators`: `python -m benchmarks.report`.

Writes `results/results.md` and `results/captions.svg`, and the table between the markers in README.md. A folder in
`results` holds `peers.json` and `product.json` of another machine, which has a section of its own in `results.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.operators import FOLDERS
from benchmarks.outputs import RESULTS, ROOT
from benchmarks.peers import REFERENCE
from benchmarks.roster import PLAIN_OPENVINO_FP32, PLAIN_OPENVINO_INT8, WITHOUT_AMX
from caplet_export.card import markdown_table

Results = dict[str, Any]
_ROUNDS_TEXT = "one process per engine, alternating bursts"
_WORTH_A_ROW = 0.02  # milliseconds


@dataclass(frozen=True)
class Target:
    """One of the project's performance targets: a bound, and the measured value, None if it was not measured."""

    quantity: str
    value: float | None
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Met, missed or not measured."""
        if self.value is None:
            return "not measured"
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "met" if met else "missed"

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Cells of its row in a table."""
        value, limit = _number(self.value), _number(self.limit)
        if value == limit and self.verdict == "missed":  # by so little that it takes more digits to see
            value = f"{self.value:.6g}"
        value = value if self.value is None else f"{value}{self.unit}"
        return self.quantity, value, f"{'≥' if self.at_least else '≤'} {limit}{self.unit}", self.verdict


def read(folder: Path, *names: str) -> list[Results]:
    """The results of these benchmarks in a folder.

    Raises:
        FileNotFoundError: there are none of one of them.
        ValueError: a file is not JSON.
    """
    found = []
    for name in names:
        path = folder / f"{name}.json"
        try:
            results = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        found.append(without_duplicates(results) if name == "peers" else results)
    return found


def other_machines(results: Path) -> dict[str, list[Results]]:
    """`peers` and `product` of each machine that has a folder in `results`, by its name. Raises as `read` does."""
    return {path.parent.name: read(path.parent, "peers", "product") for path in sorted(results.glob("*/peers.json"))}


def without_duplicates(peers: Results) -> Results:
    """The results, without `WITHOUT_AMX` if the processor has no AMX: it is the same as `openvino-int8` there."""
    if "amx_int8" in peers["machine"]["cpu"]["features"]:
        return peers
    return {**peers, "peers": {name: peer for name, peer in peers["peers"].items() if name != WITHOUT_AMX}}


def milliseconds(peers: Results, name: str, task: str) -> list[float]:
    """Times of all runs of a task; none if the engine was not measured or has no such stage."""
    rounds = peers["peers"].get(name, {}).get("rounds", {}).get(task, [])
    return [run for runs in rounds for run in runs]


def ratio(peers: Results, over: tuple[str, str], under: tuple[str, str]) -> float | None:
    """Median of one (engine, task) divided by that of another; None if either was not measured."""
    above, below = milliseconds(peers, *over), milliseconds(peers, *under)
    return statistics.median(above) / statistics.median(below) if above and below else None


def targets(peers: Results, product: Results) -> list[Target]:
    """The project's performance targets (docs/benchmarking.md) with the measured values."""
    small, full = "caplet-int8", "caplet-fp32"
    sizes, batch = product["sizes"], product["batch"]

    def encoders(quantity: str, over: str, under: str, limit: float) -> Target:
        return Target(quantity, ratio(peers, (over, "encode"), (under, "encode")), limit)

    def same_where(openvino: str, over: str, under: str, limit: float) -> list[Target]:
        """Not every machine and not every release has measured this."""
        return [encoders(f"the same where OpenVINO {openvino}", over, under, limit)] if under in peers["peers"] else []

    return [
        encoders("int8 encoder ÷ OpenVINO int8", small, "openvino-int8", 1.15),
        *same_where("does not use AMX", small, WITHOUT_AMX, 1.15),
        *same_where("has the plain QDQ export", small, PLAIN_OPENVINO_INT8, 1.15),
        encoders("fp32 encoder ÷ OpenVINO fp32", full, "openvino-fp32", 1.0),
        *same_where("has the plain export", full, PLAIN_OPENVINO_FP32, 1.0),
        encoders("int8 encoder ÷ plain static QDQ export", small, "ort-qdq", 0.68),
        Target(
            f"greedy decode of {peers['decoded_words']} words ÷ int8 encoder",
            ratio(peers, (small, "decode"), (small, "encode")),
            0.20,
        ),
        Target(
            "photo → caption, greedy ÷ the tutorial's loop",
            ratio(peers, (small, "caption"), ("keras-predict", "caption")),
            1 / 15,
        ),
        Target(
            "photo → caption, default beam ÷ greedy",
            ratio(peers, (f"{small}-default", "caption"), (small, "caption")),
            1.5,
        ),
        Target(
            "photo → caption, greedy ÷ `tf.function`",
            ratio(peers, (small, "caption"), ("tf-function", "caption")),
            1 / 3,
        ),
        Target(
            "12-megapixel JPEG → pixels ÷ plain Pillow",
            product["large_jpeg"]["caplet_ms"] / product["large_jpeg"]["pillow_ms"],
            0.25,
        ),
        Target(
            "fresh process → first caption ÷ importing onnxruntime and Pillow",
            product["cold_start"]["caption_seconds"] / product["cold_start"]["imports_seconds"],
            3.0,
        ),
        Target("peak RSS of `caplet photo.jpg`", product["memory"]["peak_mb"], 200, " MB"),
        Target("installed size of caplet and all it needs", sizes.get("installed_mb"), 220, " MB"),
        Target("wheel", sizes.get("wheel_mb"), 35, " MB"),
        Target(
            "batch of 32, photos per second ÷ one at a time",
            batch["batch_of_32"] / batch["one_at_a_time"],
            1.2,
            at_least=True,
        ),
        Target("idle CPU 0.2 s after a caption", round(100 * product["idle"]["cpu_share"], 1), 0, " %"),
    ]


def readme_table(peers: Results) -> str:
    """The peers for the README: photo to caption, memory, sizes."""
    plan, release = peers["plan"], peers["machine"].get("versions", {}).get("caplet")
    by = f"caplet {release}, " if release else ""
    return "\n".join(
        [
            *_quick_warning(peers),
            f"Photo (640×480 JPEG) → caption, {by}{plan['threads']} threads, {_ROUNDS_TEXT}; "
            f"{_machine(peers['machine'])}. [How, and everything else](benchmarks/README.md).",
            "",
            _captions(peers),
        ]
    )


def markdown(
    peers: Results, product: Results, operators: Results, others: Mapping[str, Sequence[Results]] | None = None
) -> str:
    """The whole text of results.md; `others` are peers and product of other machines, by their names."""
    sources = "peers.json, product.json and operators.json"
    lines = ["# Results", "", f"Written by `python -m benchmarks.report` from {sources}.", ""]
    lines += [*_quick_warning(peers, product, operators), "## Targets", "", _targets(peers, product)]
    lines += ["", "## Peers", "", _measured(peers), ""]
    plan = peers["plan"]
    lines += [
        f"{plan['threads']} threads, {plan['rounds']} rounds, {_ROUNDS_TEXT}, {plan['rest_seconds']} s of rest. Bundle "
        f"{peers['bundle']}. Milliseconds; `decode` is {peers['decoded_words']} words.",
        "",
        "![photo to caption](captions.svg)",
        "",
    ]
    for task in ("caption", "encode", "decode"):
        rows = []
        for name, peer in peers["peers"].items():
            runs = milliseconds(peers, name, task)
            if runs:
                figures = map(_number, np.percentile(runs, (50, 90, 99)))
                rows.append((peer["label"], *figures, str(len(runs))))
        lines += [f"### {task}", "", markdown_table(("engine", "p50", "p90", "p99", "runs"), rows), ""]
    lines += ["### Size, memory, and whether they say the same", "", _facts(peers), ""]
    lines += ["## caplet as a product", "", _measured(product), "", _product(product), ""]
    lines += ["## Where each millisecond goes", "", _measured(operators), ""]
    lines += [
        f"onnxruntime's profile after its own fusions, threads: {operators['threads']}, one photo or one word. Number "
        f"of operators · the sum of their median milliseconds over {operators['runs']} runs.",
        "",
    ]
    for graph, profiles in operators["graphs"].items():
        lines += [f"### {graph}", "", _operators(profiles), ""]
    for name, (their_peers, their_product) in (others or {}).items():
        lines += [f"## On another machine: {name}", "", *_quick_warning(their_peers, their_product)]
        lines += [f"Peers: {_measured(their_peers)}", "", f"caplet as a product: {_measured(their_product)}", ""]
        lines += [_targets(their_peers, their_product), "", _captions(their_peers), ""]
    return "\n".join(lines)


def chart(peers: Results, path: Path) -> None:
    """Draw the median times from photo to caption, with whiskers to the 90th percentile, as an SVG file. Dots, since
    bars have no beginning on a logarithmic scale.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # So that the same JSON gives the same file.
    matplotlib.rcParams["svg.hashsalt"] = "caplet"
    measured = [name for name in peers["peers"] if milliseconds(peers, name, "caption")][::-1]
    runs = [milliseconds(peers, name, "caption") for name in measured]
    medians = [statistics.median(values) for values in runs]
    ends = [np.percentile(values, 90) for values in runs]
    figure, axes = pyplot.subplots(figsize=(8, 0.7 + 0.38 * len(measured)))
    colors = ["#d9480f" if name.startswith("caplet") else "#868e96" for name in measured]
    labels = [peers["peers"][name]["label"].replace("`", "") for name in measured]
    axes.hlines(labels, medians, ends, color=colors)
    axes.scatter(medians, labels, color=colors, zorder=2)
    for label, median, end in zip(labels, medians, ends, strict=True):
        axes.annotate(
            _number(median), (end, label), xytext=(7, 0), textcoords="offset points", verticalalignment="center"
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", color="#dee2e6")
    axes.set_axisbelow(True)
    threads = peers["plan"]["threads"]
    measure = f"ms from photo to caption (logarithmic), median to 90th percentile, {threads} threads"
    axes.set_xlabel(measure)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Title": measure})
    pyplot.close(figure)


def insert(text: str, table: str, section: str = "benchmark") -> str:
    """The README's text with the table between the section's markers.

    Raises:
        ValueError: the markers are not there once each, the beginning first.
    """
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"no {begin} … {end}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def _targets(peers: Results, product: Results) -> str:
    return markdown_table(("quantity", "measured", "bound", ""), [target.row for target in targets(peers, product)])


def _captions(peers: Results) -> str:
    """A row per peer: photo to caption, memory, sizes."""
    rows = []
    for name, peer in peers["peers"].items():
        runs = milliseconds(peers, name, "caption")
        if not runs:
            rows.append((peer["label"], peer["status"].split(":")[0], "", "", "", ""))
            continue
        share = ratio(peers, (name, "caption"), (REFERENCE, "caption"))
        rows.append(
            (
                peer["label"],
                _number(statistics.median(runs)),
                _number(np.percentile(runs, 90)),
                "–" if share is None else f"{_number(share)}×",
                _number(peer["memory_mb"]["peak"]),
                f"{_number(peer['installed_mb'])} + {_number(peer['model_mb'])}" if "model_mb" in peer else "–",
            )
        )
    return markdown_table(("engine", "p50 ms", "p90 ms", "÷ caplet", "peak RSS MB", "packages + model MB"), rows)


def _facts(peers: Results) -> str:
    """Sizes, memory, and how many captions are those of the tutorial's loop, word for word."""
    expected = peers["peers"].get("keras-predict", {}).get("captions", {})
    rows = []
    for peer in peers["peers"].values():
        if peer["status"] != "measured":
            rows.append((peer["label"], peer["status"], "", "", "", ""))
            continue
        captions = peer["captions"]
        same = sum(captions.get(photo) == text for photo, text in expected.items())
        rows.append(
            (
                peer["label"],
                _number(peer["installed_mb"]),
                _number(peer.get("model_mb")),
                _number(peer["memory_mb"]["peak"]),
                # Random weights, which say nothing, are not loaded but made.
                _number(peer["load_seconds"] if captions else None),
                f"{same} of {len(expected)}" if captions and expected else "–",
            )
        )
    heads = ("engine", "packages MB", "model MB", "peak RSS MB", "load s", "captions as the tutorial's loop")
    return markdown_table(heads, rows)


def _operators(profiles: Results) -> str:
    """A row per operator type that takes time anywhere, a column per form of the graph."""
    names = [name for name in FOLDERS if name in profiles]

    def cell(entry: Results | None) -> str:
        return f"{entry['count']} · {entry['milliseconds']:.2f}" if entry and entry["count"] else ""

    most: dict[str, float] = {}
    for name in names:
        for kind, entry in profiles[name]["operators"].items():
            most[kind] = max(most.get(kind, 0.0), entry["milliseconds"])
    worth = sorted((kind for kind in most if most[kind] >= _WORTH_A_ROW), key=lambda kind: -most[kind])
    rows = [(kind, *(cell(profiles[name]["operators"].get(kind)) for name in names)) for kind in worth]
    rest = []
    for name in names:
        others = [entry for kind, entry in profiles[name]["operators"].items() if kind not in worth]
        rest.append(cell({key: sum(entry[key] for entry in others) for key in ("count", "milliseconds")}))
    totals = [f"**{cell(profiles[name])}**" for name in names]
    return markdown_table(
        ("operator", *(FOLDERS[name] for name in names)), [*rows, ("others", *rest), ("**all**", *totals)]
    )


def _product(product: Results) -> str:
    sizes, cold, jpeg = product["sizes"], product["cold_start"], product["large_jpeg"]
    rows = [
        ("fresh process → first caption", f"{cold['caption_seconds']:.2f} s"),
        ("fresh process that imports onnxruntime and Pillow", f"{cold['imports_seconds']:.2f} s"),
        ("peak RSS of `caplet photo.jpg`", f"{product['memory']['peak_mb']:.0f} MB"),
        ("CPU from 0.2 s after a caption on", f"{100 * product['idle']['cpu_share']:.1f} %"),
        ("12-megapixel JPEG → pixels, caplet", f"{jpeg['caplet_ms']:.0f} ms"),
        ("12-megapixel JPEG → pixels, plain Pillow", f"{jpeg['pillow_ms']:.0f} ms"),
        ("their mean difference, of 255", f"{jpeg['mean_difference']:.2f}"),
    ]
    rows += [(f"photos per second, {name.replace('_', ' ')}", _number(rate)) for name, rate in product["batch"].items()]
    rows += [
        (f"greedy decode of {count} words", f"{_number(value)} ms")
        for count, value in product["words"]["milliseconds"].items()
    ]
    rows += [
        (f"{part['photos']} photos", f"{part['seconds']:.1f} s, peak RSS {part['peak_mb']:.0f} MB")
        for part in product["growth"]
    ]
    rows += [
        (name.replace("_mb", "").replace("_", " "), f"{size:.1f} MB")
        for name, size in sizes.items()
        if name.endswith("_mb")
    ]
    return markdown_table(("quantity", "measured"), rows)


def _quick_warning(*results: Results) -> list[str]:
    if any(result["quick"] for result in results):
        return ["**Made with `--quick`: these numbers mean nothing.**", ""]
    return []


def _measured(part: Results) -> str:
    """The machine, the software and the date of one of the JSON files, which may differ from those of the others."""
    versions = part["machine"].get("versions", {})
    software = "".join(f"; {name} {version}" for name, version in versions.items())
    return f"{_machine(part['machine'])}{software}; {part['created']}."


def _machine(machine: Results) -> str:
    cpu, busy = machine["cpu"], machine["busy_before"]
    features = ", ".join(cpu["features"])
    noise = f"; {100 * busy:.0f} % busy with something else before" if busy > 0.05 else ""
    return f"{cpu['name']}, {machine['usable_threads']['count']} CPUs ({features}), {machine['memory_gb']} GB{noise}"


def _number(value: float | None) -> str:
    """Rounded to three significant digits, from 100 on to a whole number, without zeros at the end of a fraction."""
    if value is None:
        return "–"
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files are (%(default)s)")
    parser.add_argument("--readme", type=Path, help="default: the repository's, if the results are")
    arguments = parser.parse_args(argv)
    results, path = arguments.results, arguments.readme
    if path is None and results.resolve() == RESULTS:
        path = ROOT / "README.md"
    try:
        peers, product, operators = read(results, "peers", "product", "operators")
        others = other_machines(results)
    except FileNotFoundError as error:
        parser.exit(1, f"{error.filename}: no such file; run benchmarks.peers, .product and .operators first\n")
    except ValueError as error:
        parser.exit(1, f"{error}; measure again\n")
    page = markdown(peers, product, operators, others)
    try:
        readme = insert(path.read_text(encoding="utf-8"), readme_table(peers)) if path else ""
    except (OSError, ValueError) as error:
        parser.exit(1, f"{path}: {error}\n")
    chart(peers, results / "captions.svg")
    (results / "results.md").write_text(page, encoding="utf-8")
    if path:
        path.write_text(readme, encoding="utf-8")
    print(f"wrote {results}/results.md and captions.svg" + (f" and the table in {path}" if path else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
