"""What is timed, how often, in which order and under which conditions, with stand-ins for workers and clocks."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import MagicMock

import numpy as np
import pytest

from benchmarks import (
    engine_caplet,
    machine,
    operators,
    peers,
    prepare,
    probes,
    product,
    report,
    saturation,
    spinning,
    worker,
)
from benchmarks.engine import END, START, Encoded, StepwiseEngine, plain_pixels
from benchmarks.peers import Contest, Plan, Worker
from benchmarks.roster import PEERS, Peer

PLAN = Plan(threads=3, rounds=2, rest_seconds=0.25, burst_milliseconds=100, most_runs=10)
PHOTOS = [Path("cat.jpg"), Path("dog.jpg")]


def engine(name: str) -> Peer:
    return Peer(name, name, "no:Engine", ())


class NotingWorker:
    """A worker whose tasks take the milliseconds in its name, and that notes what it is asked for."""

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
        """Do nothing: no process runs."""


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
    assert milliseconds == [500.0] * 3  # one tick of the clock is the run's
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
    """A folder as if `prepare` had written it; the machine is not described."""
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


def test_memory_is_in_megabytes_and_how_busy_is_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, stat = tmp_path / "status", tmp_path / "stat"
    status.write_text("Name:\tpython\nVmHWM:\t  250000 kB\nVmRSS:\t  125000 kB\n")
    assert machine.memory_mb(status) == {"now": 128.0, "peak": 256.0}
    stat.write_text("cpu 100 0 100 700 100 0 0 0 90 0\n")
    # Of 200 further ticks, 150 are idle or waiting for disks; a virtual machine's, the last but one, are the user's.
    monkeypatch.setattr(machine.time, "sleep", lambda _: stat.write_text("cpu 130 0 120 820 130 0 0 0 110 0\n"))
    assert machine.busy(stat) == 0.25


def test_a_requirement_that_is_missing_costs_nobody_else_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.importlib.metadata.distribution

    def distribution(name: str) -> Any:
        if name == "gone":
            raise machine.importlib.metadata.PackageNotFoundError(name)
        return SimpleNamespace(requires=["gone>=1", "numpy"]) if name == "pillow" else real(name)

    monkeypatch.setattr(machine.importlib.metadata, "distribution", distribution)
    assert {"pillow", "numpy"} <= set(machine.distributions(["PIL"])) and "gone" not in machine.distributions(["PIL"])


def test_extras_that_are_required_are_followed_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = {
        "a": ["b[x]", "b", 'e; extra == "x"'],
        "b": ['c; extra == "x"', "d", 'e; extra == "y"'],
        "c": ["a", "b[x]"],
        "d": None,
        "e": None,
    }
    metadata = machine.importlib.metadata
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"module": ["A"]})
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(requires=requires[name]))
    assert sorted(machine.distributions(["module"])) == ["a", "b", "c", "d"]


def test_photos_are_vga_jpegs_of_quality_90(tmp_path: Path) -> None:
    from PIL import Image

    reference = io.BytesIO()
    Image.new("RGB", (8, 8)).save(reference, "JPEG", quality=90)
    with Image.open(reference) as expected:
        tables = expected.quantization  # type: ignore[attr-defined]
    for path in prepare.write_photos(tmp_path):
        with Image.open(path) as photo:
            assert (photo.size, photo.quantization) == ((640, 480), tables)  # type: ignore[attr-defined]


def test_pixels_of_others_are_those_of_pillows_bilinear_resize(photos: Path) -> None:
    from PIL import Image

    with Image.open(photos / "cat.jpg") as photo:
        expected = np.asarray(photo.convert("RGB").resize((80, 60), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(plain_pixels(photos / "cat.jpg", (80, 60)), expected[None])


def test_plain_exports_are_quantised_by_channel_after_pre_processing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnxruntime import quantization

    steps: list[Any] = []

    def prepare_for_it(source: Path, prepared: Path, **options: Any) -> None:
        steps.append((source, prepared.name, options))

    def quantize(prepared: Path, quantized: Path, photos: Any, **options: Any) -> None:
        steps.append((prepared.name, list(iter(photos.get_next, None)), options))
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "quantized", [], [])), quantized)

    monkeypatch.setattr("onnxruntime.quantization.shape_inference.quant_pre_process", prepare_for_it)
    monkeypatch.setattr(quantization, "quantize_static", quantize)
    feeds = [{"pixels": 1}, {"pixels": 2}]
    assert prepare._quantize_plainly(tmp_path / "encoder.onnx", feeds).graph.name == "quantized"
    types = quantization.QuantType
    options = {
        "quant_format": quantization.QuantFormat.QDQ, "per_channel": True,
        "activation_type": types.QUInt8, "weight_type": types.QInt8,
    }  # fmt: skip
    assert steps == [
        (tmp_path / "encoder.onnx", "prepared.onnx", {"skip_symbolic_shape": True}),
        ("prepared.onnx", feeds, options),
    ]


def test_operators_are_counted_and_their_median_times_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a trace of three operators, whose first three runs do not count."""
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
            """Load nothing."""

        def get_inputs(self) -> list[object]:
            return []

        def run(self, *_: object) -> None:
            """Take no time."""

        def end_profiling(self) -> str:
            return str(path)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    profile = operators.profile(tmp_path / "graph.onnx", {}, threads=1, runs=5)
    assert profile["operators"] == {
        "Conv": {"count": 2, "milliseconds": pytest.approx(9.0)},
        "Relu": {"count": 1, "milliseconds": pytest.approx(0.3)},
    }
    assert (profile["count"], profile["milliseconds"]) == (3, pytest.approx(9.3))


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """The part of a bundle that engines with graphs of their own read: up to five words, from a vocabulary of five."""
    bundle = tmp_path / "int8"
    bundle.mkdir()
    manifest = {"decoding": {"max_length": 5, "forms": [[4, 7, 8]]}, "preprocessing": {"width": 8, "height": 6}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / "vocabulary.txt").write_text("<pad>\n<start>\n<end>\n<unk>\na\ndog\n's\nan\norange\n")
    return tmp_path


class Reciter(StepwiseEngine):
    """An engine that says the words of a list for any photo, and notes after which word each was asked for."""

    def __init__(self, folder: Path, words: list[int]) -> None:
        super().__init__(folder)
        self._sentence = words
        self.asked: list[int] = []

    def encode(self, pixels: Any) -> Encoded:
        assert pixels.shape == (1, 6, 8, 3)
        return Encoded(None, None, 0)

    def step(self, token: int, state: int, encoded: Encoded) -> tuple[int, int]:
        self.asked.append(token)
        return self._sentence[state], state + 1


@pytest.mark.parametrize("words", [1, 2, 7])
def test_decoding_is_a_step_a_word_wherever_the_sentence_ends(described: Path, words: int) -> None:
    reciter = Reciter(described, [4, END, 5, 6, 4, 5, 6])
    reciter.decode(Encoded(None, None, 0), words)
    assert reciter.asked == [START, 4, END, 5, 6, 4, 5][:words]


def test_a_caption_stops_at_its_end_or_at_the_longest(described: Path, photos: Path) -> None:
    ending, endless = Reciter(described, [4, 5, 6, END]), Reciter(described, [4, 5] * 9)
    assert ending.caption(photos / "cat.jpg", 12) == "a dog's"
    assert ending.asked == [START, 4, 5, 6]
    assert endless.caption(photos / "cat.jpg", 12) == "a dog a dog a"
    assert endless.asked == [START, 4, 5, 4, 5]


def test_words_take_the_forms_that_caplet_gives_them(described: Path, photos: Path) -> None:
    assert Reciter(described, [4, 8, 5, 4, END]).caption(photos / "cat.jpg", 12) == "an orange dog a"


def test_a_bundle_of_an_older_version_has_no_forms(described: Path, photos: Path) -> None:
    manifest = described / "int8/manifest.json"
    content = json.loads(manifest.read_text())
    del content["decoding"]["forms"]
    manifest.write_text(json.dumps(content))
    assert Reciter(described, [4, 8, END]).caption(photos / "cat.jpg", 12) == "a orange"


def test_no_encoder_runs_right_before_decoding_is_timed(described: Path, photos: Path) -> None:
    """Its threads may still spin: features come from the burst before, which encoded the same photo."""
    reciter = Reciter(described, [4, 5])
    encoded: list[int] = []
    reciter.encode = lambda pixels: encoded.append(1) or Encoded(None, None, 0)  # type: ignore[method-assign]
    tasks = worker.Tasks(reciter)
    for name in ("cat.jpg", "coffee.jpg"):
        worker.burst(tasks.prepare("encode", str(photos / name), 12), 3)
        encoded.clear()
        worker.burst(tasks.prepare("decode", str(photos / name), 2), 3)
        assert not encoded
    worker.burst(tasks.prepare("decode", str(photos / "cat.jpg"), 2), 3)
    assert len(encoded) == 1


@pytest.mark.parametrize(("name", "beam_size"), [("caplet-int8", 1), ("caplet-int8-default", None)])
def test_caplet_runs_with_the_threads_and_the_beam_that_are_compared(
    name: str, beam_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Captioner:
        bundle = SimpleNamespace(manifest=SimpleNamespace(width=8, height=6))
        sessions = SimpleNamespace(step=None)

        def __init__(self, bundle: Path, *, threads: int) -> None:
            asked.append((str(bundle), threads))

        def caption(self, photo: Path, *, beam_size: int | None) -> SimpleNamespace:
            asked.append(beam_size)
            return SimpleNamespace(text="a dog")

        def decoding(self, beam_size: int | None, max_length: int) -> tuple[int | None, int]:
            return beam_size, max_length

    monkeypatch.setattr(engine_caplet, "Captioner", Captioner)
    monkeypatch.setattr(engine_caplet, "search", lambda step, encoded, decoding: asked.append(decoding))
    caplet: Any = PEERS[name].build(Path("folder"), 3)
    assert caplet.caption(Path("cat.jpg"), 12) == "a dog"
    caplet.decode(None, 12)
    assert asked == [("folder/int8", 3), beam_size, (beam_size, 12)]


@pytest.mark.parametrize("beam_size", [1, None])
def test_caplet_decodes_as_many_words_as_asked_for(
    tiny_bundle: Path, photos: Path, beam_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even for a photo whose caption is shorter."""
    from caplet import sessions

    asked: list[list[int]] = []
    step = sessions.Sessions.step

    def noting(self: Any, token: Any, *rest: Any) -> Any:
        asked.append(token.tolist())
        return step(self, token, *rest)

    caplet = engine_caplet.Caplet(tiny_bundle.parent, 1, tiny_bundle.name, beam_size)
    assert len(caplet.caption(photos / "cat.jpg", 12).split()) < 12
    monkeypatch.setattr(sessions.Sessions, "step", noting)
    caplet.decode(caplet.encode(plain_pixels(photos / "cat.jpg", caplet.size)), 12)
    assert len(asked) == 12 and not any(END in tokens for tokens in asked)


def test_openvino_runs_one_photo_for_latency_in_float32(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, dict[str, Any]]] = []
    shapes: list[dict[str, list[int]]] = []

    class Core:
        def read_model(self, path: Path) -> SimpleNamespace:
            inputs = [SimpleNamespace(any_name=f"of {path.stem}", partial_shape=[-1, 6, 8])]
            return SimpleNamespace(inputs=inputs, reshape=shapes.append)

        def compile_model(self, model: object, device: str, options: dict[str, Any]) -> MagicMock:
            compiled.append((device, options))
            return MagicMock()

    monkeypatch.setitem(sys.modules, "openvino", MagicMock(Core=Core))
    PEERS["openvino-int8"].build(described, 3)
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 3, "INFERENCE_PRECISION_HINT": "f32"}
    assert compiled == [("CPU", options)] * 2
    assert shapes == [{"of encoder": [1, 6, 8]}, {"of decoder": [1, 6, 8]}]


def test_litert_runs_with_the_threads_that_are_compared(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    litert = MagicMock()
    monkeypatch.setitem(sys.modules, "ai_edge_litert", MagicMock(interpreter=litert))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", litert)
    PEERS["litert"].build(described, 3)
    assert [(Path(given.args[0]).name, given.kwargs) for given in litert.Interpreter.call_args_list] == [
        (f"{name}.tflite", {"num_threads": 3}) for name in ("encoder", "decoder")
    ]


def test_tensorflow_is_compiled_and_runs_with_the_threads_that_are_compared(
    described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorflow = MagicMock()
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    for name in ("keras", "caplet_export.checkpoint"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    compiled: Any = PEERS["tf-function"].build(described, 3)
    tensorflow.config.threading.set_intra_op_parallelism_threads.assert_called_once_with(3)
    tensorflow.config.threading.set_inter_op_parallelism_threads.assert_called_once_with(3)
    assert compiled._encode is compiled._step is tensorflow.function.return_value


@pytest.mark.parametrize(
    ("name", "shape", "has_bfloat16", "dtype", "prompt"),
    [
        ("vit-gpt2", (1, 3, 224, 224), True, "float32", 0),
        ("blip-base", (1, 3, 384, 384), True, "float32", 0),
        ("florence-2-base", (1, 3, 768, 768), True, "bfloat16", 577 + 8),
        ("florence-2-base", (1, 3, 768, 768), False, "float32", 577 + 8),
        ("smolvlm-256m", (1, 1, 3, 512, 512), True, "bfloat16", 64 + 16),
    ],
)
def test_transformers_write_greedily_as_many_tokens_as_words_and_one_to_end(
    name: str,
    shape: tuple[int, ...],
    has_bfloat16: bool,
    dtype: str,
    prompt: int,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch, transformers, model = MagicMock(), MagicMock(), MagicMock()
    model.eval.return_value = model.to.return_value = model
    model.parameters.return_value = [SimpleNamespace(numel=lambda: 6, element_size=lambda: 4)] * 2
    for kind in (
        "VisionEncoderDecoderModel",
        *(f"{it}ForConditionalGeneration" for it in ("Blip", "Florence2", "Idefics3")),
    ):
        getattr(transformers, kind).return_value = model
    torch.float32, torch.bfloat16 = "float32", "bfloat16"
    torch.ops.mkldnn._is_mkldnn_bf16_supported.return_value = has_bfloat16
    torch.from_numpy.side_effect = lambda values: SimpleNamespace(to=lambda dtype: (values.shape, dtype))
    torch.tensor.side_effect = np.shape
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    engine: Any = PEERS[name].build(Path(), 3)
    torch.set_num_threads.assert_called_once_with(3)
    model.to.assert_called_once_with(dtype)
    assert engine.model_bytes == 48
    assert engine.caption(photos / "cat.jpg", 7) is None
    asked = {"input_ids": (1, prompt)} if prompt else {}
    model.generate.assert_called_once_with(
        pixel_values=(shape, dtype), **asked, min_new_tokens=8, max_new_tokens=8, num_beams=1, do_sample=False
    )


def test_the_chart_shows_medians_and_reaches_to_the_90th_percentile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    dots: list[float] = []
    ends: list[float] = []
    save = figures.Figure.savefig

    def savefig(figure: Any, *arguments: Any, **options: Any) -> None:
        _, medians = figure.axes[0].collections  # whiskers, dots
        dots.extend(medians.get_offsets()[:, 0])
        ends.append(figure.axes[0].dataLim.x1)
        save(figure, *arguments, **options)

    monkeypatch.setattr(figures.Figure, "savefig", savefig)
    rounds = {"caplet-int8": [[11.0, 23.0], [71.0]], "keras-predict": [[410.0, 517.0, 917.0]]}
    engines = {name: {"label": name, "rounds": {"caption": runs}} for name, runs in rounds.items()}
    report.chart({"peers": engines, "plan": {"threads": 2}}, tmp_path / "chart.svg")
    texts = re.findall("<!-- (.+?) -->", (tmp_path / "chart.svg").read_text())
    assert {"caplet-int8", "keras-predict", "23", "517"} <= set(texts)
    assert sorted(dots) == [23, 517]
    assert ends == [pytest.approx(517 + 0.8 * 400)]


class Kernels:
    """An onnxruntime session whose exact kernels take 3 seconds and whose usual ones take 1, by a clock of its own."""

    now = 0.0
    usual_is_off_by = 0.0
    opened: ClassVar[list[tuple[str, str, int]]] = []

    def __init__(self, path: str, options: Any, providers: list[str]) -> None:
        self._exact = options.get_session_config_entry("session.x64quantprecision") == "1"
        spinning = options.get_session_config_entry("session.intra_op.allow_spinning")
        Kernels.opened.append(("exact" if self._exact else "usual", spinning, options.intra_op_num_threads))

    def run(self, names: None, feeds: dict[str, Any]) -> list[Any]:
        Kernels.now += 3 if self._exact else 1
        return [np.zeros(2), np.array([1.0, 2.0 if self._exact else 2.0 + Kernels.usual_is_off_by])]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in ("features", "state")]


@pytest.mark.parametrize("off_by", [0.0, 1e-6])
def test_exact_kernels_are_compared_with_the_usual_ones(
    tiny_bundle: Path, photos: Path, off_by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", Kernels)
    monkeypatch.setattr(saturation, "time", SimpleNamespace(perf_counter=lambda: Kernels.now))
    monkeypatch.setattr(Kernels, "usual_is_off_by", off_by)
    Kernels.opened.clear()
    found = saturation.measure(tiny_bundle, photos / "cat.jpg", threads=3, runs=2)
    assert Kernels.opened == [("exact", "0", 3), ("usual", "0", 3), ("exact", "0", 1), ("usual", "0", 1)]
    for graph in ("encoder", "decoder"):
        assert found[graph] == {
            "exact": [3000, 3000], "usual": [1000, 1000], "usual / exact": 0.333, "same outputs": not off_by
        }  # fmt: skip


class World:
    """A clock, programs that keep a core busy, and captioners, one for each spin, twice as slow beside such a program.

    They take a second for the encoder, two for a caption, and half a second for each of many; two cores compute.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.programs, self.most_programs, self.captioners = 0, 0, 0
        self.notes: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return 2 * self.now

    def sleep(self, seconds: float) -> None:
        self.notes.append(f"rest {seconds}")

    def start(self, command: list[str]) -> SimpleNamespace:
        self.programs += 1
        self.most_programs = max(self.most_programs, self.programs)
        return SimpleNamespace(kill=self.end, wait=lambda: None)

    def end(self) -> None:
        self.programs -= 1

    def captioner(self, bundle: Path | None, threads: int) -> SimpleNamespace:
        spin = spinning.SPINS[self.captioners]
        self.captioners += 1

        def work(seconds: float) -> None:
            self.now += seconds * (2 if self.programs else 1)
            self.notes.append(f"run {spin}")

        def caption_many(photos: list[Path]) -> list[None]:
            work(len(photos) / 2)
            return []

        return SimpleNamespace(
            bundle=SimpleNamespace(manifest=SimpleNamespace(name="world", width=16, height=16)),
            sessions=SimpleNamespace(encode=lambda pixels: work(1)), caption=lambda photo: work(2),
            caption_many=caption_many,
        )  # fmt: skip


def test_spins_take_turns_alone_and_beside_a_program(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each after a rest and an untimed run, in alternating order; times are those of one photo."""
    world = World()
    monkeypatch.setattr("caplet.Captioner", world.captioner)
    monkeypatch.setattr(spinning, "time", world)
    monkeypatch.setattr(spinning, "subprocess", SimpleNamespace(Popen=world.start))
    found = spinning.measure(None, photos / "cat.jpg", threads=2, runs=2)
    for company, slower in (("alone", 1), ("beside a busy program", 2)):
        for task, milliseconds in (("encoder", 1000), ("caption", 2000), ("side by side", 500)):
            taken = {"ms": slower * milliseconds, "cpu_ms": 2 * slower * milliseconds}
            assert found[company][task] == {f"{spin} us": taken for spin in spinning.SPINS}
    turns = [*spinning.SPINS[::-1], *spinning.SPINS]
    assert world.notes == 6 * [note for spin in turns for note in ("rest 0.02", f"run {spin}", f"run {spin}")]
    assert (world.programs, world.most_programs) == (0, 1)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that takes 100 MB now, and took 300 at its peak."""
    monkeypatch.setattr(probes, "memory_mb", lambda: {"now": 100.0, "peak": 300.0})


def test_idling_begins_a_fifth_of_a_second_after_a_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that computes all the time until then, and whose other threads compute a quarter of it from then on.

    The thread that sleeps is charged for an eighth.
    """
    slept: list[float] = []

    def process_time() -> float:
        passed = sum(slept)
        return min(passed, 0.2) + max(passed - 0.2, 0) / 4 + thread_time()

    def thread_time() -> float:
        return sum(slept) / 8

    clock = SimpleNamespace(sleep=slept.append, process_time=process_time, thread_time=thread_time)
    monkeypatch.setattr(probes, "time", clock)
    monkeypatch.setattr("caplet.Captioner", MagicMock())
    assert probes.idle_cpu("bundle", "cat.jpg") == {"cpu_share": pytest.approx(1 / 4)}
    assert slept == [0.2, 5.0]


@pytest.mark.usefixtures("little_memory")
def test_memory_grows_over_as_many_photos_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a captioner that takes a second a photo."""
    asked: list[str] = []

    def caption_many(photos: Iterable[str]) -> Iterator[None]:
        for photo in photos:
            asked.append(photo)
            yield

    monkeypatch.setattr(probes, "time", SimpleNamespace(perf_counter=lambda: 7.0 + len(asked)))
    monkeypatch.setattr("caplet.Captioner", lambda bundle: SimpleNamespace(caption_many=caption_many))
    found = probes.growth("bundle", "5", "cat.jpg", "dog.jpg")
    assert asked == ["cat.jpg", "dog.jpg", "cat.jpg", "dog.jpg", "cat.jpg"]
    assert found == {"photos": 5, "seconds": 5.0, "peak_mb": 300.0}


@pytest.mark.usefixtures("little_memory")
def test_the_commands_memory_is_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    command = MagicMock(return_value=0)
    monkeypatch.setattr("caplet.cli.main", command)
    assert probes.command_memory("--model", "bundle", "cat.jpg") == {"peak_mb": 300.0}
    command.assert_called_once_with(("--model", "bundle", "cat.jpg"))


def test_a_command_that_fails_has_no_memory_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caplet.cli.main", lambda arguments: 1)
    with pytest.raises(SystemExit) as stopped:
        probes.command_memory("--model", "bundle", "gone.jpg")
    assert stopped.value.code == 1


def test_starts_find_their_modules_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder for all starts, even where Python is told to write no bytecode."""
    folders: list[str] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> None:
        assert "PYTHONDONTWRITEBYTECODE" not in env and Path(env["PYTHONPYCACHEPREFIX"]).is_dir()
        folders.append(env["PYTHONPYCACHEPREFIX"])

    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(product, "subprocess", SimpleNamespace(run=run))
    product.cold_start(Path("bundle"), "cat.jpg", 2)
    assert len(folders) == 6 and len(set(folders)) == 1
    assert not Path(folders[0]).exists()


def test_the_product_is_probed_in_processes_with_photos_and_four_times_as_many(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        if "benchmarks.probes" in command:
            asked.append(command[command.index("benchmarks.probes") + 1 :])
        return SimpleNamespace(stdout="printed before\n{}\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(product, "describe_machine", dict)
    monkeypatch.setattr(product, "sizes", lambda wheel: {})
    monkeypatch.setattr(product, "write_photos", lambda folder: PHOTOS)
    product.measure(tiny_bundle, None, repetitions=8, photos=25)
    bundle, photos = str(tiny_bundle), ["cat.jpg", "dog.jpg"]
    probed = {name: rest for name, *rest in asked}
    assert [rest for name, *rest in asked if name == "growth"] == [[bundle, "25", *photos], [bundle, "100", *photos]]
    assert probed["command_memory"] == ["--model", bundle, "cat.jpg"]
    assert probed["idle_cpu"] == [bundle, "cat.jpg"]
    assert probed["batch"] == [bundle, "2", *photos]
    assert probed["words"] == [bundle, "8", "cat.jpg"]
    assert probed["large_jpeg"][1:] == ["8", *photos]
