"""The comparison at small counts, with a stand-in for Inception: what is installed is measured, with equal captions."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow")

import onnx

from benchmarks import operators, peers, prepare, report
from benchmarks.engine import Engine
from benchmarks.roster import PEERS, ROSTER, VIT_GPT2_INT8, Peer
from caplet_export.checkpoint import DECODER, save_weights
from caplet_export.config import Config
from caplet_export.text import SPECIALS, Vocabulary
from tiny_encoder import CONFIG, build_tiny_extractor, build_tiny_model

SAME_WEIGHTS = [name for name, peer in PEERS.items() if peer.files and name != VIT_GPT2_INT8]
SAME_FLOATS = ("openvino-fp32", "ort-fp32", "ort-fp32-resting", "litert", "tf-function", "keras-predict")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmarks")
    run, folder = root / "run", root / "prepared"
    run.mkdir()
    Config(model=CONFIG).save(run / "config.json")
    words = [f"word{chr(ord('a') + number)}" for number in range(CONFIG.vocabulary_size - len(SPECIALS))]
    Vocabulary([*SPECIALS, *words]).save(run / "vocabulary.txt")
    model = build_tiny_model()
    save_weights(model, run / DECODER)
    photos = prepare.write_photos(folder / "photos")
    prepare.prepare(folder, run, build_tiny_extractor(), model, None, photos)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("results") / "peers.json"
    arguments = [str(folder), "--quick", "--threads", "1", "--engines", *SAME_WEIGHTS, "-o", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "DECODED_WORDS", 3)  # `model.predict` takes a fifth of a second for each
        assert peers.main(arguments) == 0
    loaded: dict[str, Any] = json.loads(output.read_text())
    return loaded


def test_everybody_installed_is_measured_and_everybody_else_is_named(results: dict[str, Any]) -> None:
    assert set(results["peers"]) == set(SAME_WEIGHTS)
    for name, result in results["peers"].items():
        missing = PEERS[name].missing_packages()
        assert result["status"] == (f"not installed: {', '.join(missing)}" if missing else "measured")


def test_every_stage_of_everybody_has_its_runs(results: dict[str, Any]) -> None:
    measured = {name: result for name, result in results["peers"].items() if result["status"] == "measured"}
    assert {"caplet-int8", "ort-fp32", "tf-function", "keras-predict"} <= set(measured)
    for name, result in measured.items():
        assert {task: len(runs) for task, runs in result["rounds"].items()} == dict.fromkeys(peers.TASKS, 2)
        assert all(value > 0 for task in peers.TASKS for value in report.milliseconds(results, name, task))
        assert 0 < result["memory_mb"]["now"] <= result["memory_mb"]["peak"]
        assert result["installed_mb"] > 10 and result["model_mb"] > 0


def test_engines_with_the_same_weights_say_the_same(results: dict[str, Any]) -> None:
    """caplet never repeats three words in a row, so a random model's sentences may differ from the fourth word on."""
    expected = results["peers"]["keras-predict"]["captions"]
    assert len(expected) == 2 and all(len(text.split()) >= 4 for text in expected.values())
    for name in SAME_FLOATS:
        captions = results["peers"][name].get("captions", {})
        if captions:
            assert captions == expected, name
    for photo, text in expected.items():
        assert results["peers"]["caplet-fp32"]["captions"][photo].split()[:3] == text.split()[:3]


def test_operators_of_every_form_of_the_graphs_are_counted_and_timed(folder: Path, tmp_path: Path) -> None:
    assert operators.main([str(folder), "--quick", "-o", str(tmp_path / "operators.json")]) == 0
    results = json.loads((tmp_path / "operators.json").read_text())
    assert {graph: list(found) for graph, found in results["graphs"].items()} == {
        graph: list(operators.FOLDERS) for graph in operators.GRAPHS
    }
    for found in results["graphs"].values():
        for profile in found.values():
            assert profile["count"] == sum(entry["count"] for entry in profile["operators"].values()) > 10
            assert profile["milliseconds"] > 0
    before, after = (results["graphs"]["encoder"][name]["operators"] for name in ("plain-qdq", "int8"))
    assert "QLinearAveragePool" in before and "QLinearAveragePool" not in after
    assert after["QLinearConv"]["count"] == 5


@pytest.mark.parametrize(
    ("name", "option", "first_kernels"),
    [
        ("openvino-int8", "graphs", [8, 3, 3, 3]),
        ("openvino-int8-vnni", "graphs", [8, 3, 3, 3]),
        ("caplet-int8", "bundle", [16, 12, 3, 2]),
    ],
)
def test_onnxruntime_takes_pixels_by_fours_and_openvino_which_is_slower_so_does_not(
    folder: Path, name: str, option: str, first_kernels: list[int]
) -> None:
    encoder = onnx.load(folder / PEERS[name].options[option] / "encoder.onnx").graph
    assert first_kernels in [[*tensor.dims] for tensor in encoder.initializer]
    assert {node.op_type for node in encoder.node} > {"Conv", "QuantizeLinear"}


def test_an_engine_that_fails_is_reported_and_stops_nobody(folder: Path, tmp_path: Path) -> None:
    for name in ("int8", "photos"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/encoder.onnx").symlink_to(folder / "plain/encoder.onnx")
    (tmp_path / "plain/decoder.onnx").symlink_to(folder / "plain/encoder.onnx")  # loads, but fails at the first word
    plan = peers.Plan(threads=1, rounds=1, rest_seconds=0, burst_milliseconds=0, most_runs=1)
    contestants = [
        dataclasses.replace(PEERS["caplet-fp32"], files=()),
        PEERS["ort-fp32"],
        PEERS["ort-qdq"],
        dataclasses.replace(PEERS["blip-base"], imports=("no_such_package",)),
        PEERS["caplet-int8"],
    ]
    photos = sorted((folder / "photos").glob("*.jpg"))
    found = peers.compare(contestants, tmp_path, photos, plan, lambda line: None)["peers"]
    assert found["caplet-fp32"]["status"].startswith("failed: caplet.errors.BundleNotFoundError")
    assert found["ort-fp32"]["status"].startswith("failed: ") and "rounds" not in found["ort-fp32"]
    assert found["ort-qdq"]["status"] == "not prepared: plain-qdq"
    assert found["blip-base"]["status"] == "not installed: no_such_package"
    assert found["caplet-int8"]["status"] == "measured"


@pytest.mark.parametrize("name", ["ort-qdq", "ort-fp32"])
def test_plain_exports_run_by_default_options_and_without_spinning(folder: Path, name: str) -> None:
    key = "session.intra_op.allow_spinning"
    usual, resting = (PEERS[each].build(folder, threads=2) for each in (name, f"{name}-resting"))
    for graph in ("_encoder", "_decoder"):
        options, quiet = (getattr(engine, graph).get_session_options() for engine in (usual, resting))
        assert quiet.get_session_config_entry(key) == "0"
        with pytest.raises(RuntimeError, match=key):
            options.get_session_config_entry(key)
        assert options.intra_op_num_threads == quiet.intra_op_num_threads == 2


def test_no_two_engines_are_called_alike() -> None:
    assert len({peer.label for peer in ROSTER}) == len(PEERS) == len(ROSTER)


@pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))
def test_every_entry_of_the_roster_names_an_engine(peer: Peer) -> None:
    """Even where its packages are not installed: they are imported only when an engine is made."""
    module, _, name = peer.factory.partition(":")
    engine = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    assert issubclass(engine, Engine) and not inspect.isabstract(engine)
