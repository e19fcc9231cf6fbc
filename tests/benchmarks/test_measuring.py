"""What is timed, how often, in which order and under which conditions: with workers and clocks that only take notes."""

from __future__ import annotations

import io
import json
import subprocess
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from benchmarks import machine, operators, peers, prepare, product, worker
from benchmarks.peers import Contest, Plan, Worker
from benchmarks.roster import PEERS, Peer

PLAN = Plan(threads=3, rounds=2, rest_seconds=0.25, burst_milliseconds=100, most_runs=10)
PHOTOS = [Path("cat.jpg"), Path("dog.jpg")]


def engine(name: str) -> Peer:
    return Peer(name, name, "no:Engine", ())


class NotingWorker:
    """A worker whose tasks take the milliseconds of its name, and that notes what it is asked for."""

    notes: ClassVar[list[str]] = []

    def __init__(self, peer: Peer, folder: Path, threads: int) -> None:
        self.peer, self.tasks = peer, peers.TASKS
        self.asked: list[tuple[str, str, int, int]] = []
        self.captions: dict[str, str] = {}
        self.threads = threads

    def run(self, task: str, photo: Path, words: int, times: int) -> list[float]:
        self.asked.append((task, photo.name, words, times))
        NotingWorker.notes.append(f"{self.peer.name} {task}")
        self.captions[photo.name] = "a b c" if photo.name == "cat.jpg" else "a b c d e"
        return [float(self.peer.name.split("-")[-1].removeprefix("caplet") or 1)] * times

    def close(self) -> None:
        """Nothing runs."""


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch) -> Contest:
    NotingWorker.notes.clear()
    monkeypatch.setattr(peers, "Worker", NotingWorker)
    monkeypatch.setattr(peers.time, "sleep", lambda seconds: NotingWorker.notes.append(f"rest {seconds}"))
    made = Contest([engine("slow-40"), engine("quick-5"), engine("mid-20")], Path(), PLAN, lambda line: None)
    assert [each.threads for each in made.workers] == [3, 3, 3]
    return made


def test_a_burst_times_every_run_but_the_first_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, runs = count(), []
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock) / 4)
    milliseconds, result = worker.burst(lambda: runs.append(next(clock)) or len(runs), 3)
    assert milliseconds == [500.0] * 3  # a tick of the clock is in each
    assert (result, len(runs)) == (4, 4)


def test_engines_take_turns_from_the_front_and_from_the_back_with_a_rest_before_each(contest: Contest) -> None:
    times = {(each.peer.name, task): 1 for each in contest.workers for task in peers.TASKS}
    for number, order in enumerate((["slow-40", "quick-5", "mid-20"], ["mid-20", "quick-5", "slow-40"])):
        NotingWorker.notes.clear()
        contest.round(number, PHOTOS[0], 3, times)
        assert NotingWorker.notes == [
            note for task in peers.TASKS for name in order for note in ("rest 0.25", f"{name} {task}")
        ]
    assert contest.results["quick-5"]["rounds"] == {task: [[5.0], [5.0]] for task in peers.TASKS}


def test_a_burst_is_as_many_runs_as_fit_into_its_time(contest: Contest) -> None:
    assert contest.warm_up(PHOTOS[0], 3) == {
        (name, task): runs for name, runs in (("slow-40", 2), ("quick-5", 10), ("mid-20", 5)) for task in peers.TASKS
    }
    assert all(asked[-1] == 2 for each in contest.workers for asked in each.asked)  # type: ignore[attr-defined]


def test_captions_have_the_photos_words_and_decode_has_twelve(contest: Contest) -> None:
    contest.round(0, PHOTOS[1], 5, {(each.peer.name, task): 7 for each in contest.workers for task in peers.TASKS})
    for each in contest.workers:
        assert each.asked == [  # type: ignore[attr-defined]
            ("caption", "dog.jpg", 5, 7), ("encode", "dog.jpg", 12, 7), ("decode", "dog.jpg", 12, 7)
        ]  # fmt: skip


def test_the_length_of_captions_is_that_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "Worker", NotingWorker)
    monkeypatch.setattr(peers, "REFERENCE", "reference-1")
    with_reference = Contest([engine("other-2"), engine("reference-1")], Path(), PLAN, lambda line: None)
    assert with_reference.caption_lengths(PHOTOS) == {"cat.jpg": 3, "dog.jpg": 5}
    assert Contest([engine("other-2")], Path(), PLAN, lambda line: None).caption_lengths(PHOTOS) == {
        "cat.jpg": 10, "dog.jpg": 10
    }  # fmt: skip


def test_a_worker_is_told_its_threads_and_its_peers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def start(command: list[str], **options: Any) -> SimpleNamespace:
        started.append((command, options["env"]))
        answer = io.StringIO(json.dumps({"load_seconds": 1.0, "stages": True, "model_bytes": None}) + "\n")
        return SimpleNamespace(stdin=io.StringIO(), stdout=answer)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(peers.select, "select", lambda *_: [True])
    Worker(PEERS["openvino-int8-vnni"], Path("folder"), 3)
    [(command, environment)] = started
    assert command[-3:] == ["openvino-int8-vnni", "folder", "3"]
    told = {name: environment.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ONEDNN_MAX_CPU_ISA")}
    assert told == {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}


def test_greedy_engines_search_greedily_and_the_default_ones_as_the_bundle_says() -> None:
    for name in ("caplet-int8", "caplet-fp32"):
        assert PEERS[name].options["beam_size"] == 1
        assert "beam_size" not in PEERS[f"{name}-default"].options


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if `prepare` had written it; and nothing is measured, not even how busy the machine is."""
    for name in ("photos/cat.jpg", "int8/manifest.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"name": "tiny"}')
    monkeypatch.setattr(operators, "describe_machine", dict)
    return tmp_path


@pytest.mark.parametrize("quick", [True, False])
def test_quick_results_say_so_and_others_are_of_whole_bursts(
    folder: Path, quick: bool, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    asked: dict[str, Any] = {}

    def compare(engines: object, folder: Path, photos: object, plan: Plan, say: object) -> dict[str, Any]:
        asked["peers"] = plan
        return {"peers": {}}

    def measure(*_: object, **options: Any) -> dict[str, Any]:
        asked[str(len(asked))] = options
        return {}

    monkeypatch.setattr(peers, "compare", compare)
    monkeypatch.setattr(operators, "measure", measure)
    monkeypatch.setattr(product, "measure", measure)
    output, flags = folder / "results.json", ["--quick"] if quick else []
    for main, arguments in (
        (peers.main, [str(folder)]),
        (operators.main, [str(folder)]),
        (product.main, ["--bundle", str(tiny_bundle), "--no-wheel"]),
    ):
        assert main([*arguments, *flags, "-o", str(output)]) == 0
        assert json.loads(output.read_text())["quick"] is quick
    assert asked == {
        "peers": Plan(2, 2, 0.0, 0, 1) if quick else Plan(2, 40, 0.15, 250, 10),
        "1": {"threads": 1, "runs": 2 if quick else 40},
        "2": {"repetitions": 2, "photos": 4} if quick else {"repetitions": 20, "photos": 100},
    }


def test_results_say_which_bundle_they_are_of(tiny_bundle: Path) -> None:
    identity = peers.bundle_identity(tiny_bundle)
    assert identity["bundle"] == json.loads((tiny_bundle / "manifest.json").read_text())["name"]
    assert len(identity["manifest_sha256"]) == 64


def test_memory_is_in_megabytes_and_load_in_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, stat = tmp_path / "status", tmp_path / "stat"
    status.write_text("Name:\tpython\nVmHWM:\t  250000 kB\nVmRSS:\t  125000 kB\n")
    assert machine.memory_mb(status) == {"now": 128.0, "peak": 256.0}
    stat.write_text("cpu 100 0 100 700 100 0 0\n")
    # Of 200 further ticks 150 idle or waiting for disks.
    monkeypatch.setattr(machine.time, "sleep", lambda _: stat.write_text("cpu 130 0 120 820 130 0 0\n"))
    assert machine.busy(stat) == 0.25


def test_a_requirement_that_is_missing_costs_nobody_else_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.importlib.metadata.distribution

    def distribution(name: str) -> Any:
        if name == "gone":
            raise machine.importlib.metadata.PackageNotFoundError(name)
        return SimpleNamespace(requires=["gone>=1", "numpy"]) if name == "pillow" else real(name)

    monkeypatch.setattr(machine.importlib.metadata, "distribution", distribution)
    assert {"pillow", "numpy"} <= set(machine.distributions(["PIL"])) and "gone" not in machine.distributions(["PIL"])


def test_photos_are_vga_jpegs_of_quality_90(tmp_path: Path) -> None:
    from PIL import Image

    reference = io.BytesIO()
    Image.new("RGB", (8, 8)).save(reference, "JPEG", quality=90)
    with Image.open(reference) as expected:
        tables = expected.quantization  # type: ignore[attr-defined]
    for path in prepare.write_photos(tmp_path):
        with Image.open(path) as photo:
            assert (photo.size, photo.quantization) == ((640, 480), tables)  # type: ignore[attr-defined]


def test_operators_are_counted_and_their_median_times_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a trace with three operators, whose first three runs do not count."""
    import onnxruntime

    trace = [
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": {"op_name": kind}}
        for milliseconds in (90, 80, 70, 1, 2, 3, 4, 50)
        for name, kind, dur in (
            ("a", "Conv", 1000 * milliseconds), ("b", "Conv", 2000 * milliseconds), ("c", "Relu", 100 * milliseconds)
        )
    ]  # fmt: skip
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))

    class Session:
        def __init__(self, *_: object, **__: object) -> None:
            """Loads nothing."""

        def get_inputs(self) -> list[object]:
            return []

        def run(self, *_: object) -> None:
            """Takes no time."""

        def end_profiling(self) -> str:
            return str(path)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    profile = operators.profile(tmp_path / "graph.onnx", {}, threads=1, runs=5)
    assert profile["operators"] == {
        "Conv": {"count": 2, "milliseconds": pytest.approx(9.0)},
        "Relu": {"count": 1, "milliseconds": pytest.approx(0.3)},
    }
    assert (profile["count"], profile["milliseconds"]) == (3, pytest.approx(9.3))
