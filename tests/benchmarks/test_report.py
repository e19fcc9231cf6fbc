"""Tables and chart have the figures of the JSON, and so has the README."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import report

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
MACHINE = {
    "cpu": {"name": "Some CPU", "features": ["avx2"]},
    "usable_threads": {"count": 2, "reason": ""},
    "memory_gb": 8.0,
    "busy_before": 0.0,
}


def peer(label: str, caption: list[float], encode: list[float] | None = None) -> dict[str, Any]:
    rounds = {"caption": [caption]} | ({"encode": [encode], "decode": [encode]} if encode else {})
    return {
        "label": label, "status": "measured", "rounds": rounds, "memory_mb": {"now": 90.0, "peak": 100.0},
        "installed_mb": 50.0, "model_mb": 25.0, "load_seconds": 0.2, "captions": {"cat.jpg": "a cat"},
    }  # fmt: skip


@pytest.fixture
def peers() -> dict[str, Any]:
    return {
        "created": "2026-01-01T00:00:00+00:00", "machine": MACHINE, "bundle": "tiny", "quick": False,
        "decoded_words": 12, "plan": {"threads": 2, "rounds": 1, "rest_seconds": 0.15},
        "peers": {
            "caplet-int8": peer("caplet int8", [10.0, 20.0, 30.0], [8.0, 9.0, 10.0]),
            "openvino-int8": peer("OpenVINO int8", [11.0, 22.0, 33.0], [9.0, 9.0, 9.0]),
            "keras-predict": peer("`model.predict`", [400.0, 500.0, 900.0]),
            "blip-base": {"label": "BLIP", "status": "not installed: torch"},
        },
    }  # fmt: skip


@pytest.fixture
def product() -> dict[str, Any]:
    return {
        "quick": False, "machine": MACHINE, "created": "2026-01-02T00:00:00+00:00",
        "cold_start": {"caption_seconds": 0.6, "imports_seconds": 0.3},
        "memory": {"peak_mb": 201.0}, "idle": {"cpu_share": 0.0},
        "large_jpeg": {"caplet_ms": 30.0, "pillow_ms": 180.0, "mean_difference": 0.5},
        "batch": {"one_at_a_time": 20.0, "batch_of_32": 30.0, "usual_batches": 31.0},
        "words": {"milliseconds": {"12": 4.0}},
        "growth": [{"photos": 100 * n, "seconds": 3.0 * n, "peak_mb": 150.0} for n in (1, 4)],
        "sizes": {"required_mb": 150.0},
    }  # fmt: skip


@pytest.fixture
def operators() -> dict[str, Any]:
    def graph(**kinds: tuple[int, float]) -> dict[str, Any]:
        entries = {kind: {"count": count, "milliseconds": time} for kind, (count, time) in kinds.items()}
        total = {key: sum(entry[key] for entry in entries.values()) for key in ("count", "milliseconds")}
        return {"operators": entries, **total}

    before = graph(QLinearConv=(94, 28.0), QLinearAveragePool=(9, 10.0), Tanh=(1, 0.004), Cast=(5, 0.01))
    after = graph(QLinearConv=(84, 27.5), QLinearMul=(9, 0.2), Tanh=(1, 0.004))
    return {
        "created": "2026-01-03T00:00:00+00:00", "machine": MACHINE, "threads": 1, "runs": 40, "quick": False,
        "graphs": {"encoder": {"plain-qdq": before, "int8": after}},
    }  # fmt: skip


@pytest.fixture
def folder(peers: dict[str, Any], product: dict[str, Any], operators: dict[str, Any], tmp_path: Path) -> Path:
    """A folder with the results as the benchmarks leave them."""
    for name, results in (("peers", peers), ("product", product), ("operators", operators)):
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    return tmp_path


def test_a_ratio_is_that_of_medians_within_the_run(peers: dict[str, Any]) -> None:
    assert report.ratio(peers, ("caplet-int8", "caption"), ("keras-predict", "caption")) == 20 / 500
    assert report.ratio(peers, ("caplet-int8", "encode"), ("keras-predict", "encode")) is None
    assert report.ratio(peers, ("blip-base", "caption"), ("caplet-int8", "caption")) is None


def test_targets_are_judged_and_what_is_missing_is_said(peers: dict[str, Any], product: dict[str, Any]) -> None:
    verdicts = {target.quantity: target.verdict for target in report.targets(peers, product)}
    assert verdicts["int8 encoder ÷ OpenVINO int8"] == "met"
    assert verdicts["fp32 encoder ÷ OpenVINO fp32"] == "not measured"
    assert verdicts["greedy decode of 12 words ÷ int8 encoder"] == "missed"
    assert verdicts["peak RSS of `caplet photo.jpg`"] == "missed"
    assert verdicts["batch of 32, photos per second ÷ one at a time"] == "met"
    assert verdicts["idle CPU 0.2 s after a caption"] == "met"
    assert verdicts["wheel"] == "not measured"


def test_every_target_is_the_ratio_that_it_is_called(peers: dict[str, Any], product: dict[str, Any]) -> None:
    names = ["caplet-int8", "caplet-int8-default", "caplet-fp32", "openvino-int8", "openvino-int8-vnni"]
    names += ["openvino-fp32", "ort-qdq", "tf-function", "keras-predict"]
    peers["peers"] = {name: peer(name, [100.0 + number], [200.0 + number]) for number, name in enumerate(names)}
    peers["peers"]["caplet-int8"]["rounds"]["decode"] = [[300.0]]
    product["sizes"] |= {"wheel_mb": 30.0, "installed_mb": 180.0}
    product["idle"]["cpu_share"] = 0.012
    found = [target.value for target in report.targets(peers, product)]
    encoders = [200 / 203, 200 / 204, 202 / 205, 200 / 206, 300 / 200]
    assert found == pytest.approx([*encoders, 100 / 108, 101 / 100, 100 / 107, 30 / 180, 2.0, 201, 180, 30, 1.5, 1.2])


def test_openvino_has_rows_with_the_plain_exports_where_these_were_measured(
    peers: dict[str, Any], product: dict[str, Any]
) -> None:
    names = ["caplet-int8", "caplet-fp32", "openvino-fp32", "openvino-fp32-plain", "openvino-int8-plain"]
    peers["peers"] = {name: peer(name, [100.0], [20.0 + number]) for number, name in enumerate(names)}
    found = {target.quantity: (target.value, target.limit) for target in report.targets(peers, product)}
    assert found["fp32 encoder ÷ OpenVINO fp32"] == (21 / 22, 1.0)
    assert found["the same where OpenVINO has the plain export"] == (21 / 23, 1.0)
    assert found["the same where OpenVINO has the plain QDQ export"] == (20 / 24, 1.15)


@pytest.mark.parametrize("at_least", [True, False])
def test_a_bound_itself_is_met(at_least: bool) -> None:
    assert report.Target("", 1.2, 1.2, at_least=at_least).verdict == "met"


def test_a_bound_that_is_just_missed_does_not_look_met() -> None:
    assert report.Target("encoder", 1.0002, 1.0).row == ("encoder", "1.0002", "≤ 1", "missed")
    assert report.Target("encoder", 0.9998, 1.0).row == ("encoder", "1", "≤ 1", "met")


def test_the_page_lists_the_targets(peers: dict[str, Any], product: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text(encoding="utf-8")
    table = page.partition("## Performance targets")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| (.+) \| ([≤≥] .+) \|$", table, re.M)
    assert listed == [(quantity, bound) for quantity, _, bound, _ in (t.row for t in report.targets(peers, product))]


def test_the_readme_table_has_a_line_for_everybody(peers: dict[str, Any]) -> None:
    lines = report.readme_table(peers).splitlines()
    assert "| `model.predict` | 500 | 820 | 25× | 100 | 50 + 25 |" in lines
    assert "| BLIP | not installed |  |  |  |  |" in lines
    assert f"| caplet int8 | {statistics.median([10, 20, 30])} |" in "\n".join(lines)


def test_the_readme_table_says_of_which_release_it_is(peers: dict[str, Any]) -> None:
    assert "→ caption, 2 threads" in report.readme_table(peers)
    peers["machine"] = {**MACHINE, "versions": {"caplet": "1.2.3", "numpy": "2.0"}}
    assert "→ caption, caplet 1.2.3, 2 threads" in report.readme_table(peers)


def test_the_results_have_times_memory_and_equal_captions_of_everybody(
    peers: dict[str, Any], product: dict[str, Any], operators: dict[str, Any]
) -> None:
    peers["peers"]["openvino-int8"]["captions"] = {"cat.jpg": "a dog"}
    peers["peers"]["vit-gpt2"] = peer("ViT-GPT2", [600.0]) | {"captions": {}}
    lines = report.markdown(peers, product, operators).splitlines()
    assert "| caplet int8 | 20 | 28 | 29.8 | 3 |" in lines[lines.index("### caption") : lines.index("### encode")]
    assert "| caplet int8 | 9 | 9.8 | 9.98 | 3 |" in lines[lines.index("### encode") : lines.index("### decode")]
    assert "| caplet int8 | 50 | 25 | 100 | 0.2 | 1 of 1 |" in lines
    assert "| OpenVINO int8 | 50 | 25 | 100 | 0.2 | 0 of 1 |" in lines
    assert "| ViT-GPT2 | 50 | 25 | 100 | – | – |" in lines


def test_a_machine_that_was_busy_before_is_told(peers: dict[str, Any]) -> None:
    assert "busy" not in report.readme_table(peers)
    peers["machine"] = {**MACHINE, "busy_before": 0.06}
    assert "8.0 GB; 6 % busy with something else before" in report.readme_table(peers)


def test_without_amx_there_is_no_row_for_not_using_it(peers: dict[str, Any]) -> None:
    peers["peers"]["openvino-int8-vnni"] = peer("OpenVINO int8, not using AMX", [10.0])
    assert "not using AMX" not in report.readme_table(report.without_duplicates(peers))
    cpu = {**MACHINE["cpu"], "features": ["avx512_vnni", "amx_int8"]}
    peers["machine"] = {**MACHINE, "cpu": cpu}
    assert "not using AMX" in report.readme_table(report.without_duplicates(peers))


def test_quick_results_are_marked_as_worthless(
    peers: dict[str, Any], product: dict[str, Any], operators: dict[str, Any]
) -> None:
    assert "mean nothing" not in report.markdown(peers, product, operators)
    assert "mean nothing" in report.readme_table(peers | {"quick": True})
    assert "mean nothing" in report.markdown(peers, product | {"quick": True}, operators)
    assert "mean nothing" in report.markdown(peers, product, operators | {"quick": True})


def test_another_machine_has_its_targets_and_its_captions_in_a_section_of_its_own(
    peers: dict[str, Any], product: dict[str, Any], operators: dict[str, Any], tmp_path: Path
) -> None:
    slow = {name: {**each} for name, each in peers["peers"].items()}
    slow["caplet-int8"] = peer("caplet int8", [100.0], [18.0])
    slow["openvino-int8-vnni"] = peer("OpenVINO int8, not using AMX", [10.0])
    machine = MACHINE | {"memory_gb": 4.0}
    (tmp_path / "old").mkdir()
    for name, results in (("peers", {**peers, "peers": slow, "machine": machine}), ("product", product)):
        (tmp_path / "old" / f"{name}.json").write_text(json.dumps(results))
    assert report.other_machines(tmp_path / "old") == {}
    page = report.markdown(peers, product, operators, report.other_machines(tmp_path))
    here, _, there = page.partition("## On another machine: old\n")
    assert "| int8 encoder ÷ OpenVINO int8 | 1 | ≤ 1.15 | met |" in here
    assert "| int8 encoder ÷ OpenVINO int8 | 2 | ≤ 1.15 | missed |" in there
    assert "4.0 GB" in there and "4.0 GB" not in here
    dates = [peers["created"], product["created"]]  # of other releases, perhaps
    assert [line.split("; ")[-1] for line in there.splitlines() if "Some CPU" in line] == [f"{date}." for date in dates]
    assert "| caplet int8 | 100 | 100 | 1× | 100 | 50 + 25 |" in there
    assert "not using AMX" not in there
    assert here.rstrip("\n") == report.markdown(peers, product, operators).rstrip("\n")


def test_operators_stand_side_by_side_before_and_after(
    peers: dict[str, Any], product: dict[str, Any], operators: dict[str, Any]
) -> None:
    lines = report.markdown(peers, product, operators).splitlines()
    start = lines.index("### encoder")
    assert lines[start + 2 : start + 9] == [
        "| operator | 8 bits, as exported | 8 bits, rewritten |",
        "| --- | ---: | ---: |",
        "| QLinearConv | 94 · 28.00 | 84 · 27.50 |",
        "| QLinearAveragePool | 9 · 10.00 |  |",
        "| QLinearMul |  | 9 · 0.20 |",
        "| others | 6 · 0.01 | 1 · 0.00 |",
        "| **all** | **109 · 38.01** | **94 · 27.70** |",
    ]


def test_the_table_goes_between_the_markers_and_nothing_else_changes() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = report.insert(text, "new")
    assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert report.insert(once, "new") == once


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_readme_without_the_markers_is_left_alone(text: str) -> None:
    with pytest.raises(ValueError):
        report.insert(text, "new")


def check_chart(svg: str, peers: dict[str, Any]) -> None:
    """A row for each engine: label and median in letters, a dot at the median, a line to the 90th percentile."""
    names = [name for name in peers["peers"] if report.milliseconds(peers, name, "caption")][::-1]
    runs = [report.milliseconds(peers, name, "caption") for name in names]
    ends = [[statistics.median(values), np.percentile(values, 90)] for values in runs]
    labels = [peers["peers"][name]["label"].replace("`", "") for name in names]
    # Letters are drawn as paths, each text after a comment that says it.
    texts = re.findall("<!-- (.+?) -->", svg)
    assert texts[-2 * len(names) :] == labels + [report._number(median) for median, _ in ends]
    lines = re.findall(r'd="M ([\d.]+) ([\d.]+) \nL ([\d.]+) \2 \n".*stroke: (#\w+)', after(svg, "LineCollection_1"))
    dots = re.findall(r'x="([\d.]+)" y="([\d.]+)" style="fill: (#\w+)', after(svg, "PathCollection_1"))
    assert [(left, y, color) for left, y, _, color in lines] == dots
    assert [color == "#d9480f" for *_, color in lines] == [name.startswith("caplet") for name in names]
    places, logarithms = np.array([[left, right] for left, _, right, _ in lines], float), np.log(ends)
    slope, start = np.polyfit(logarithms.ravel(), places.ravel(), 1)
    np.testing.assert_allclose(places, start + slope * logarithms, atol=1e-3)
    assert sorted((float(y) for _, y, _, _ in lines), reverse=True) == [float(y) for _, y, _, _ in lines]


def after(svg: str, part: str) -> str:
    """What the group of this name holds, up to the next group's name."""
    return svg.partition(f'<g id="{part}">')[2].partition("<g id=")[0]


@pytest.mark.parametrize("named", [True, False])
def test_the_command_writes_all_three(
    named: bool, peers: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the folder and the README that are named, or else into the repository's, which here is another."""
    pytest.importorskip("matplotlib")
    readme = folder / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    if not named:
        monkeypatch.setattr(report, "RESULTS", folder)
        monkeypatch.setattr(report, "ROOT", folder)
    assert report.main(["--results", str(folder), "--readme", str(readme)] if named else []) == 0
    assert report.readme_table(peers) in readme.read_text()
    assert "| BLIP | not installed: torch |" in (folder / "results.md").read_text()
    first = (folder / "captions.svg").read_bytes()
    check_chart(first.decode(), peers)
    report.chart(peers, folder / "captions.svg")
    assert b"<title>ms from photo to caption" in first  # for screen readers: its letters are drawn as paths
    assert first.startswith(b"<?xml") and first == (folder / "captions.svg").read_bytes()


def test_results_elsewhere_are_for_no_readme_but_a_named_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", folder)
    monkeypatch.setattr(report, "chart", lambda *_: None)
    (folder / "README.md").write_text(f"{BEGIN}\n{END}\n")
    assert report.main(["--results", str(folder)]) == 0
    assert (folder / "README.md").read_text() == f"{BEGIN}\n{END}\n"


def test_readme_results_and_chart_hold_what_the_json_in_the_repository_says() -> None:
    peers, product, operators = report.read(report.RESULTS, "peers", "product", "operators")
    text = (report.ROOT / "README.md").read_text(encoding="utf-8")
    assert report.insert(text, report.readme_table(peers)) == text, "python -m benchmarks.report"
    results = (report.RESULTS / "results.md").read_text(encoding="utf-8")
    others = report.other_machines(report.RESULTS)
    assert report.markdown(peers, product, operators, others) == results, "python -m benchmarks.report"
    check_chart((report.RESULTS / "captions.svg").read_text(encoding="utf-8"), peers)
