"""Conversion: the graphs keep to the contract and say what Keras says, and when they do not, nothing is written."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tf2onnx
from numpy.typing import NDArray

from caplet_export import checkpoint, inception
from caplet_export.cli import main
from caplet_export.config import Config, ModelConfig, TextConfig
from caplet_export.convert import _number_by_use, convert_decoder, convert_encoder, take_top_k
from caplet_export.errors import ConfigurationError, ParityError
from caplet_export.features import weights_digest
from caplet_export.flickr8k import read_dataset
from caplet_export.model import CaptionModel
from caplet_export.onnx_graph import Graph
from caplet_export.optimize import optimize_decoder, optimize_encoder, optimize_for_floats
from caplet_export.parity import KerasCaptioner, OnnxCaptioner, Parity, prove
from caplet_export.stages import Stage, write_stages
from caplet_export.text import END, PAD, SPECIALS, Vocabulary
from tiny_encoder import CONFIG, SIZE, build_tiny_extractor, build_tiny_model
from tiny_flickr8k import write_tiny_flickr8k

VARIANTS = {
    "recipe": CONFIG,
    "tutorial": dataclasses.replace(
        CONFIG, initial_state="zero", gated_context=False, deep_output=False, tied_embeddings=False
    ),
    "untied": dataclasses.replace(CONFIG, tied_embeddings=False),
    "ensemble": dataclasses.replace(CONFIG, members=3),
    "two blocks": dataclasses.replace(CONFIG, members=3, feature_block="mixed10 mixed9 mixed10"),
    "tutorial ensemble": dataclasses.replace(
        CONFIG, members=2, initial_state="zero", gated_context=False, deep_output=False, tied_embeddings=False
    ),
}


def random_photos(batches: int = 2) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    generator = np.random.default_rng(0)
    for batch in range(batches):
        size = 3 - batch  # batches of different sizes: the batch dimension is free
        yield [f"{batch}/{i}" for i in range(size)], generator.integers(0, 256, (size, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def encoder() -> onnx.ModelProto:
    return convert_encoder(build_tiny_extractor(), build_tiny_model())


@pytest.fixture(params=[(name, plain) for name in VARIANTS for plain in (False, True)], ids=str, scope="module")
def converted(request: pytest.FixtureRequest) -> tuple[CaptionModel, onnx.ModelProto, onnx.ModelProto]:
    name, plain = request.param
    model = build_tiny_model(VARIANTS[name])
    encoder = convert_encoder(build_tiny_extractor(len(model.config.blocks)), model, plain=plain)
    decoder = convert_decoder(model, plain=plain)
    if not plain:
        encoder, decoder = optimize_encoder(encoder), optimize_decoder(decoder)
    return model, encoder, decoder


def test_graphs_say_what_keras_says(converted: tuple[CaptionModel, onnx.ModelProto, onnx.ModelProto]) -> None:
    model, encoder, decoder = converted
    parity = prove(
        KerasCaptioner(build_tiny_extractor(len(model.config.blocks)), model),
        OnnxCaptioner(encoder, decoder),
        random_photos(),
        max_length=9,
    )
    parity.check()
    assert parity.photos == parity.identical_captions == 5
    assert set(parity.max_difference) == {"features", "keys", "state", "log_probs", "next_state", "attention"}
    assert max(parity.max_difference.values()) < 1e-4


def test_graphs_keep_the_contract(encoder: onnx.ModelProto) -> None:
    decoder = take_top_k(convert_decoder(build_tiny_model()))
    sessions = [onnxruntime.InferenceSession(graph.SerializeToString()) for graph in (encoder, decoder)]
    (pixels,) = sessions[0].get_inputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("pixels", "tensor(uint8)", ["N", SIZE, SIZE, 3])
    features = {"features": ["N", 64, 12], "keys": ["N", 64, 6], "state": ["N", 14]}
    assert {output.name: output.shape for output in sessions[0].get_outputs()} == features
    assert {value.name: value.shape for value in sessions[1].get_inputs()} == {"token": ["N"], **features}
    assert {output.name: output.shape for output in sessions[1].get_outputs()} == {
        "log_probs": ["N", 16],
        "tokens": ["N", 16],
        "next_state": ["N", 14],
        "attention": ["N", 64],
    }
    assert {graph.opset_import[0].version for graph in (encoder, decoder)} == {17}


@pytest.mark.parametrize("k, expected", [(5, 5), (16, 16), (40, 24)])
def test_top_words_are_those_of_the_full_softmax_without_specials(k: int, expected: int) -> None:
    decoder = convert_decoder(build_tiny_model())
    generator = np.random.default_rng(4)
    feed = {
        "token": np.array([4, 9, 17]),
        "state": generator.normal(size=(3, 14)).astype(np.float32),
        "features": generator.normal(size=(3, 64, 12)).astype(np.float32),
        "keys": generator.normal(size=(3, 64, 6)).astype(np.float32),
    }
    everything = onnxruntime.InferenceSession(decoder.SerializeToString()).run(["log_probs"], feed)[0]
    np.testing.assert_allclose(np.exp(everything).sum(axis=1), 1, rtol=1e-5)
    top = onnxruntime.InferenceSession(take_top_k(decoder, k).SerializeToString())
    log_probs, tokens = top.run(["log_probs", "tokens"], feed)
    assert log_probs.shape == tokens.shape == (3, expected)
    for row in range(3):
        allowed = [word for word in np.argsort(-everything[row]) if word not in (0, 1, 3)][:expected]
        assert tokens[row, : len(allowed)].tolist() == allowed
        np.testing.assert_array_equal(log_probs[row, : len(allowed)], everything[row, allowed])
        assert np.all(np.isneginf(log_probs[row, len(allowed) :]))


def test_the_graph_is_not_copied_for_each_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """tf2onnx's copies of Inception take 4 GB."""
    deepcopy, copied = copy.deepcopy, []

    def counted(value: object, *rest: Any) -> Any:
        copied.append(type(value))
        return deepcopy(value, *rest)

    monkeypatch.setattr(copy, "deepcopy", counted)
    convert_decoder(build_tiny_model())
    assert tf2onnx.graph.Graph not in copied


@pytest.mark.parametrize("plain", [False, True])
def test_the_optimizers_left_out_find_nothing(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def operators() -> list[list[str]]:
        model, extractor = build_tiny_model(), build_tiny_extractor()
        graphs = convert_encoder(extractor, model, plain=plain), convert_decoder(model, plain=plain)
        return [sorted(node.op_type for node in graph.graph.node) for graph in graphs]

    chosen = operators()
    monkeypatch.setattr("caplet_export.convert._OPTIMIZERS", None)  # all of them
    assert chosen == operators()


def test_what_tf2onnx_leaves_in_reference_cycles_is_freed() -> None:
    gc.disable()  # otherwise it might be freed by chance
    try:
        convert_decoder(build_tiny_model())
        left = [found for found in gc.get_objects() if isinstance(found, tf2onnx.graph.Graph)]
    finally:
        gc.enable()
    assert not left


def test_one_captioner_makes_one_file() -> None:
    """tf2onnx numbers what it makes, and TensorFlow what it traces, on and on through a process."""
    model, extractor = build_tiny_model(VARIANTS["two blocks"]), build_tiny_extractor(2)

    def made() -> list[bytes]:
        return [graph.SerializeToString() for graph in (convert_encoder(extractor, model), convert_decoder(model))]

    assert made() == made()


def test_which_of_equal_constants_tf2onnx_keeps_makes_no_other_file() -> None:
    """It merges them in the order of a set, so that the one left has another's name at the next start of Python."""
    graphs = [convert_decoder(build_tiny_model()).graph for _ in range(2)]
    numbered = [constant.name for constant in graphs[0].initializer if "__" in constant.name]
    other = {name: f"const_starts__{90 - number}" for number, name in enumerate(numbered)}
    for constant in graphs[1].initializer:
        constant.name = other.get(constant.name, constant.name)
    for node in graphs[1].node:
        node.input[:] = [other.get(name, name) for name in node.input]
    _number_by_use(graphs[1])
    assert len(numbered) > 3
    assert graphs[0] == graphs[1]


def test_a_wrong_weight_is_found() -> None:
    model, extractor = build_tiny_model(), build_tiny_extractor()
    encoder, decoder = convert_encoder(extractor, model), Graph(convert_decoder(model))
    bias = next(name for name, array in decoder.constants.items() if array.shape == (24,))
    decoder.constants[bias] = decoder.constants[bias] + np.eye(24, dtype=np.float32)[7] * 0.01
    parity = prove(KerasCaptioner(extractor, model), OnnxCaptioner(encoder, decoder.finish()), random_photos(), 5)
    with pytest.raises(ParityError, match="log_probs differs"):
        parity.check()


def test_nan_is_no_small_difference() -> None:
    parity = Parity(photos=1, identical_captions=1)
    parity.compare("state", np.zeros(3), np.array([0, np.nan, 0]))
    parity.compare("state", np.zeros(3), np.zeros(3))
    with pytest.raises(ParityError, match="state"):
        parity.check()
    with pytest.raises(ParityError, match=r"Keras has shape \(3,\), onnxruntime \(1,\)"):
        parity.compare("state", np.zeros(3), np.zeros(1))


class Counter:
    """Says word 5 as often as the first pixel tells it, then the end and 5 again, though padding is likelier; each
    step takes its state further `off`, and after the end everything.
    """

    def __init__(self, off: float) -> None:
        self.off, self.steps = off, 0

    def encode(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        left = pixels[:, 0, 0, 0].astype(np.float32)
        return {"features": left * 0, "keys": left + self.off / 2, "state": np.stack([left, left * 0], axis=1)}

    def step(
        self, token: NDArray[np.int64], encoded: dict[str, NDArray[np.float32]], state: NDArray[np.float32]
    ) -> dict[str, NDArray]:
        self.steps += 1
        over = np.where(state[:, :1] < 0, self.off, 0)
        log_probs = np.eye(8)[np.where(state[:, 0] == 0, END, 5)] + 2 * np.eye(8)[PAD] + over
        attention = over + encoded["keys"][:, None]
        return {"log_probs": log_probs, "next_state": state + np.array([-1, self.off]) + over, "attention": attention}

    def greedy(self, encoded: dict[str, NDArray[np.float32]], max_length: int) -> list[list[int]]:
        assert encoded["keys"].tolist() == [2 + self.off / 2, 4 + self.off / 2]  # its own
        return [[5, 5], [5, 5, 5, 6]]


def test_each_side_goes_its_own_way_until_a_caption_ends() -> None:
    reference, graphs = Counter(0), Counter(0.25)
    pixels = np.array([2, 4], np.uint8).reshape(2, 1, 1, 1)
    parity = prove(reference, graphs, [(["a.jpg", "b.jpg"], pixels)], 9)  # type: ignore[arg-type]
    assert parity.max_difference == {
        "features": 0, "keys": 0.125, "state": 0, "log_probs": 0, "next_state": 5 * 0.25, "attention": 0.125,
    }  # fmt: skip
    assert reference.steps == 5
    assert (parity.photos, parity.identical_captions) == (2, 1)
    assert parity.different_captions == [{"photo": "b.jpg", "keras": [5, 5, 5, 5], "onnx": [5, 5, 5, 6]}]


def test_a_difference_is_small_beside_the_largest_value_but_of_a_log_probability_by_itself() -> None:
    for name, small in (("features", True), ("log_probs", False)):
        parity = Parity(photos=1, identical_captions=1)
        for value, off in ((-200.0, 0.1), (1.0, 0.0)):
            parity.compare(name, np.array([value]), np.array([value + off]))
        assert (not parity.failures) == small
    for value, off, small in ((0.01, 0.0005, True), (1.0, 0.0011, False), (-2.0, 0.0019, True)):
        parity = Parity(photos=1, identical_captions=1)
        parity.compare("keys", np.array([value]), np.array([value + off]))
        assert (not parity.failures) == small


def test_differing_captions_are_too_many_above_one_in_a_hundred() -> None:
    Parity(photos=100, identical_captions=99).check()
    with pytest.raises(ParityError, match="98 of 100"):
        Parity(photos=100, identical_captions=98).check()
    with pytest.raises(ParityError, match="nothing"):
        Parity().check()


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with random weights, whose feature extractor is the stand-in."""
    folder = tmp_path / "run"
    folder.mkdir()
    Vocabulary([*SPECIALS, *(f"word{i}" for i in range(20))]).save(folder / "vocabulary.txt")
    config: ModelConfig = CONFIG
    Config(text=TextConfig(max_length=6), model=config).save(folder / "config.json")
    checkpoint.save_weights(build_tiny_model(), folder / checkpoint.DECODER)
    monkeypatch.setattr(checkpoint, "load_extractor", lambda folder, weights: build_tiny_extractor())
    return folder


def test_verb_writes_graphs_and_proof(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write_tiny_flickr8k(tmp_path / "data"), tmp_path / "graphs"
    assert main(["convert", str(run_folder), "--data", str(data), "-o", str(output)]) == 0
    assert "4 of 4 greedy captions are the same" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        "decoder.onnx",
        "encoder.onnx",
        "parity.json",
        "vocabulary.txt",
    ]
    parity = json.loads((output / "parity.json").read_text())
    assert parity["max_length"] == 6
    assert parity["run_weights"] == checkpoint.run_digest(run_folder)
    assert parity["photos"] == 4 and parity["max_difference"]["log_probs"] < 1e-3


def test_verb_proves_on_the_photos_and_with_the_weights_that_are_asked_for(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    weights = tmp_path / "inception.h5"
    weights.write_bytes(b"some weights")

    def load_extractor(*given: object) -> Any:
        assert given == (run_folder, str(weights))
        return build_tiny_extractor()

    def prove(_: object, __: object, batches: Iterator[tuple[list[str], Any]], length: int) -> Parity:
        assert length == 6
        seen.extend(name for names, _ in batches for name in names)
        return Parity(photos=1, identical_captions=1)

    monkeypatch.setattr("caplet_export.parity.prove", prove)
    monkeypatch.setattr(checkpoint, "load_extractor", load_extractor)
    data = write_tiny_flickr8k(tmp_path / "data")
    options = ["--data", str(data), "--split", "train", "--limit", "3", "-o", str(tmp_path / "graphs")]
    assert main(["convert", str(run_folder), *options, "--encoder-weights", str(weights)]) == 0
    record = json.loads((tmp_path / "graphs" / "parity.json").read_text())
    assert record["encoder_weights"] == weights_digest(str(weights))
    assert seen == list(read_dataset(data).split("train")[:3])


@pytest.mark.parametrize("option", ["--plain", "--float-only"])
def test_graphs_that_are_to_stay_as_they_are_are_not_quantised(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """Their mark is left by `convert` and seen by `quantize`."""
    monkeypatch.setattr("caplet_export.parity.prove", lambda *_: Parity(photos=1, identical_captions=1))
    data, output = write_tiny_flickr8k(tmp_path / "data", train=1, dev=1), tmp_path / "graphs"
    assert main(["convert", str(run_folder), "--data", str(data), option, "-o", str(output)]) == 0
    extractor, model, plain = build_tiny_extractor(), build_tiny_model(), option == "--plain"
    encoder, decoder = convert_encoder(extractor, model, plain=plain), convert_decoder(model, plain=plain)
    if not plain:
        encoder, decoder = optimize_for_floats(optimize_encoder(encoder)), optimize_decoder(decoder)
    for name, expected in {"encoder": encoder, "decoder": take_top_k(decoder)}.items():
        written = onnx.load(output / f"{name}.onnx")
        assert [node.op_type for node in written.graph.node] == [node.op_type for node in expected.graph.node]
    capsys.readouterr()
    assert main(["quantize", str(output), "--data", str(data), "-o", str(tmp_path / "int8")]) == 1
    said = f"{output}: made by `convert {option}`; convert again without {option}\n"
    assert capsys.readouterr().err.endswith(said)
    assert not (tmp_path / "int8").exists()


def test_other_encoder_weights_than_the_runs_are_refused(tmp_path: Path) -> None:
    """Which the proof would not notice: Keras reads the same wrong weights."""
    weights = tmp_path / "inception.h5"
    weights.write_bytes(b"some weights")
    write_stages(tmp_path, [Stage("x", 1, 1, 1, 50.0, 1.0, {}, encoder_weights="0" * 64)])
    Config(model=CONFIG).save(tmp_path / "config.json")
    with pytest.raises(ConfigurationError, match=r"trained on other Inception weights than those of --encoder-weights"):
        checkpoint.load_extractor(tmp_path, str(weights))
    write_stages(tmp_path, [Stage("x", 1, 1, 1, 50.0, 1.0, {}, encoder_weights=weights_digest(str(weights)))])
    with pytest.raises(ConfigurationError, match="not weights of InceptionV3 without top"):
        checkpoint.load_extractor(tmp_path, str(weights))


@pytest.mark.parametrize("change", [{"locations": 32}, {"channels": 16}], ids=str)
def test_an_extractor_of_another_shape_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, int]
) -> None:
    """Which Keras would reshape to fit: to twice as many photos."""
    monkeypatch.setattr(inception, "build_extractor", lambda *_, **__: build_tiny_extractor())
    model = dataclasses.replace(CONFIG, **change)
    Config(model=model).save(tmp_path / "config.json")
    said = f"{model.locations}×{model.channels}, but the features have 64×32"
    with pytest.raises(ConfigurationError, match=said):
        checkpoint.load_extractor(tmp_path, None)


def test_verb_writes_nothing_when_the_proof_fails(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from caplet_export import optimize

    def broken(model: onnx.ModelProto) -> onnx.ModelProto:
        graph = Graph(model)
        graph.constants = {
            name: array * np.float32(1.05) if array.ndim == 2 else array for name, array in graph.constants.items()
        }
        return graph.finish()

    data, output = write_tiny_flickr8k(tmp_path / "data"), tmp_path / "graphs"
    monkeypatch.setattr(optimize, "optimize_decoder", broken)
    assert main(["convert", str(run_folder), "--data", str(data), "-o", str(output)]) == 1
    assert "the graphs do not match Keras: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]


def test_a_run_that_is_trained_on_meanwhile_is_converted_again(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Graphs of one epoch are not said to be of another."""

    def prove_late(*_: object) -> Parity:
        checkpoint.save_weights(build_tiny_model(spread=0.1), run_folder / checkpoint.DECODER)
        return Parity(photos=1, identical_captions=1)

    data, output = write_tiny_flickr8k(tmp_path / "data"), tmp_path / "graphs"
    monkeypatch.setattr("caplet_export.parity.prove", prove_late)
    assert main(["convert", str(run_folder), "--data", str(data), "-o", str(output)]) == 1
    assert f"{run_folder}: was trained further in the meantime; convert again" in capsys.readouterr().err
    assert not output.exists()


def test_the_shipped_graphs_run_until_every_caption_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    words = iter([[5, END], [END, 7]])

    def step(*_: object) -> dict[str, NDArray[Any]]:
        return {"tokens": np.array(next(words))[:, None], "next_state": np.zeros((2, 1))}

    for name, stand_in in (("Session", lambda _: step), ("take_top_k", lambda _: None)):
        monkeypatch.setattr(f"caplet_export.parity.{name}", stand_in)
    captioner = OnnxCaptioner(None, None)  # type: ignore[arg-type]
    assert captioner.greedy({"state": np.zeros((2, 1), np.float32)}, 9) == [[5], []]
