"""Tuning: the same words as in Keras on TensorFlow, weights that learn, a run that goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tune_cases
from caplet_export import objectives
from caplet_export.cli import main
from caplet_export.config import ModelConfig
from caplet_export.flickr8k import read_dataset
from caplet_export.freerun import FreeRunner
from caplet_export.model import build_model
from caplet_export.stages import ALL, read_stages
from caplet_export.text import END, PAD, START, UNKNOWN, clean
from quick_jax import quick_jax
from tiny_flickr8k import write_tiny_flickr8k
from tune_cases import CONFIG

On = Callable[..., Any]
MODEL = replace(CONFIG.model, vocabulary_size=24)
SINGLE = replace(MODEL, members=1, feature_block="mixed10", deep_output=False, initial_state="zero")


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory: pytest.TempPathFactory) -> Iterator[On]:
    """Calls a function of tune_cases in a process in which Keras runs on JAX: here it runs on TensorFlow."""
    environment = {
        "KERAS_BACKEND": "jax",
        # Most runs compile what another has compiled.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **quick_jax(),
    }
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            pool.submit(int).result()  # starts it
        yield lambda function, *arguments, **switches: pool.submit(function, *arguments, **switches).result()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_flickr8k(tmp_path_factory.mktemp("data") / "flickr8k", train=16, dev=6)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, on_jax: On, data: Path) -> Path:
    return on_jax(tune_cases.start_run, tmp_path_factory.mktemp("runs") / "start", data)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, on_jax: On, data: Path, start: Path) -> Path:
    """A run that has learned the tiny world."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    on_jax(tune_cases.tune, folder, data, start, epochs=60, evaluate_every=20)
    return folder


def random_weights(config: ModelConfig, path: Path, seed: int = 4) -> Any:
    """A captioner whose words follow from photos, on TensorFlow, its weights saved."""
    keras.utils.set_random_seed(seed)
    model = build_model(config)
    for variable in model.trainable_variables:
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.5))
    model.save_weights(path)
    return model


@pytest.mark.parametrize("config", [MODEL, SINGLE], ids=["two captioners", "one"])
def test_says_what_keras_on_tensorflow_says(tmp_path: Path, on_jax: On, config: ModelConfig) -> None:
    path = tmp_path / "decoder.weights.h5"
    model = random_weights(config, path)
    random = np.random.default_rng(0)
    features = random.normal(size=(6, 16, config.extractor_channels)).astype(np.float32)
    tokens = random.integers(4, 24, (12, 10)).astype(np.int32)
    ids, logits, read, keras_read, _, _ = on_jax(tune_cases.said, [path], config, features, tokens)
    assert ids[:, :9].tolist() == FreeRunner(model, 9).greedy(features)[:, :9].tolist()
    assert len(set(map(tuple, ids.tolist()))) > 2
    theirs = model.teacher_forced(*model.encode(features), tokens, 2)[0].numpy()
    np.testing.assert_allclose(read, theirs, atol=2e-4)
    np.testing.assert_allclose(keras_read, theirs, atol=2e-4)
    said = np.concatenate([np.full((6, 1), START), ids[:, :-1]], axis=1)
    forced = model.teacher_forced(*model.encode(features), said.astype(np.int32))[0].numpy()
    alive = ids != PAD
    np.testing.assert_allclose(logits[alive], forced[alive], atol=2e-4)


def test_several_say_what_the_mean_of_their_logits_says(tmp_path: Path, on_jax: On) -> None:
    paths = [tmp_path / f"{seed}.weights.h5" for seed in (4, 5)]
    models = [random_weights(MODEL, path, seed) for seed, path in enumerate(paths, 4)]
    features = np.random.default_rng(1).normal(size=(4, 16, 24)).astype(np.float32)
    ids, logits, *_ = on_jax(tune_cases.said, paths, MODEL, features, np.full((4, 3), 5, np.int32))
    said = np.concatenate([np.full((4, 1), START), ids[:, :-1]], axis=1).astype(np.int32)
    forced = [model.teacher_forced(*model.encode(features), said)[0].numpy() for model in models]
    mean, alive = np.mean(forced, axis=0), ids != PAD
    np.testing.assert_allclose(logits[alive], mean[alive], atol=2e-4)
    mean[..., [PAD, START, UNKNOWN]] = -np.inf
    assert (ids == mean.argmax(axis=-1))[alive].all()
    assert (ids != forced[0].argmax(axis=-1))[alive].any(), "or the first would do alone"


def test_dropout_follows_its_key_and_nothing_else(tmp_path: Path, on_jax: On) -> None:
    path = tmp_path / "decoder.weights.h5"
    config = replace(MODEL, dropout=0.5, channel_dropout=0.5)
    random_weights(config, path)
    features = np.random.default_rng(1).normal(size=(4, 16, 24)).astype(np.float32)
    _, _, read, _, first, second = on_jax(tune_cases.said, [path], config, features, np.full((4, 3), 5, np.int32))
    np.testing.assert_array_equal(first, second)
    assert abs(first - read).max() > 0.1


def test_words_are_drawn_as_often_as_they_are_likely(tmp_path: Path, on_jax: On) -> None:
    path = tmp_path / "decoder.weights.h5"
    model = random_weights(SINGLE, path)
    features = np.random.default_rng(2).normal(size=(2, 16, 12)).astype(np.float32)
    words = on_jax(tune_cases.drawn, path, SINGLE, features, 4000)
    encoded, keys, state = model.encode(features)
    logits = model.step(np.full(2, START), state, encoded, keys)[0].numpy()
    logits[:, [PAD, START, UNKNOWN]] = -np.inf
    likely = np.exp(logits - logits.max(1, keepdims=True))
    likely /= likely.sum(1, keepdims=True)
    often = np.stack([np.bincount(row, minlength=24) / 4000 for row in words])
    np.testing.assert_allclose(often, likely, atol=0.04)


def test_objectives_are_those_of_train(on_jax: On) -> None:
    random = np.random.default_rng(4)
    logits, teachers = random.normal(scale=2, size=(2, 6, 4, 9)).astype(np.float32)
    ids = np.where(np.arange(4) < random.integers(1, 5, (6, 1)), random.integers(2, 9, (6, 4)), PAD).astype(np.int32)
    ids[ids == UNKNOWN] = END
    rewards = random.uniform(size=(2, 3)).astype(np.float32)
    expected = [objectives.cross_entropy(logits, ids, 0.1), objectives.log_probabilities(ids, logits)]
    said = tf.Variable(logits)
    with tf.GradientTape(persistent=True) as tape:
        losses = [
            objectives.self_critical_loss(objectives.log_probabilities(ids, said), ids, rewards),
            objectives.distillation_loss(said, teachers, ids),
        ]
    for loss in losses:
        expected += [loss, tape.gradient(loss, said)]
    for theirs, ours in zip(on_jax(tune_cases.losses, logits, teachers, ids, rewards), expected, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)


def test_tuning_learns_from_pixels(on_jax: On, data: Path, start: Path, tuned: Path) -> None:
    stage = read_stages(tuned)[-1]
    assert (stage.run, stage.member, stage.epochs, stage.kept) == ("tuned", ALL, 60, 60)
    assert stage.switches["train.extractor_layer"] == "mixed2" and stage.device == "cpu"
    assert stage.dev_cider is not None and stage.dev_cider > 150
    history, *_ = on_jax(tune_cases.tune, tuned, data, start, epochs=60, evaluate_every=20)
    assert [epoch.epoch for epoch in history] == [20, 40, 60]
    assert history[-1].dev_loss < history[0].dev_loss
    photo, caption = on_jax(tune_cases.example, tuned, data, start, epochs=60, evaluate_every=20)
    dataset = read_dataset(data)
    assert photo == dataset.split("dev")[0]
    assert caption in [" ".join(clean(said, CONFIG.text.rules)) for said in dataset.captions[photo]]
    before, after = (on_jax(tune_cases.trained_values, run)[0] for run in (start, tuned))
    changed = [bool(abs(new - old).max() > 1e-3) for old, new in zip(before, after, strict=True)]
    assert changed == [False, False, True, True, True, True]  # mixed2, and all that is below it, stays


def test_without_cross_entropy_the_reward_alone_teaches(tmp_path: Path, on_jax: On, data: Path, start: Path) -> None:
    switches = {"cross_entropy_weight": 0.0, "epochs": 40, "evaluate_every": 10, "reward_rouge": 2.0}
    history, *_ = on_jax(tune_cases.tune, tmp_path / "run", data, start, **switches)
    assert history[-1].dev_cider > history[0].dev_cider + 20


def test_what_is_kept_is_the_average_to_eight_bits(tmp_path: Path, on_jax: On, data: Path, start: Path) -> None:
    run = tmp_path / "run"
    on_jax(tune_cases.tune, run, data, start)
    kept = on_jax(tune_cases.trained_values, run)[0][2:]
    begun = on_jax(tune_cases.trained_values, start)[0][2:]
    for stored, whole, before in zip(kept, on_jax(tune_cases.averages, run, data, start), begun, strict=True):
        assert abs(stored - whole).max() <= abs(whole - before).max() / 127 / 2 * 1.01 + 1e-7
        assert abs(whole - before).max() > 1e-4


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, on_jax: On, data: Path, start: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    at_once, _, told = on_jax(tune_cases.tune, whole, data, start)
    assert told and all(steps == 4 and step <= 4 and np.isfinite(loss) for step, steps, loss in told)
    on_jax(tune_cases.tune, parts, data, start, until=2)
    in_parts, *_ = on_jax(tune_cases.tune, parts, data, start)
    assert [(e.epoch, e.train_loss, e.dev_cider) for e in at_once] == [
        (e.epoch, e.train_loss, e.dev_cider) for e in in_parts
    ]
    for one, other in zip(*(on_jax(tune_cases.trained_values, run) for run in (whole, parts)), strict=True):
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_a_pupil_becomes_like_its_teachers(tmp_path: Path, on_jax: On, data: Path, start: Path, tuned: Path) -> None:
    switches = {"objective": "distillation", "epochs": 40, "evaluate_every": 10, "mixup": 0.3, "random_erasing": 0.2}
    history, *_ = on_jax(tune_cases.tune, tmp_path / "pupil", data, start, [tuned, tuned], **switches)
    assert history[-1].train_loss < 0.3 * history[0].train_loss
    assert history[-1].dev_cider > 100
    assert read_stages(tmp_path / "pupil")[-1].switches["teacher"] == "tuned tuned"
    # Taught by what it is already, it has nothing to learn.
    switches |= {"epochs": 2, "evaluate_every": 1, "learning_rate": 0.0, "extractor_learning_rate": 0.0}
    history, *_ = on_jax(tune_cases.tune, tmp_path / "same", data, tuned, [tuned], **switches)
    assert abs(history[-1].train_loss) < 1e-3


def test_patience_keeps_the_best(tmp_path: Path, on_jax: On, data: Path, tuned: Path) -> None:
    run = tmp_path / "run"
    switches = {"patience": 2, "epochs": 8, "evaluate_every": 1, "learning_rate": 0.3, "ema_decay": 0.0}
    history, *_ = on_jax(tune_cases.tune, run, data, tuned, **switches)
    best = max(history, key=lambda epoch: epoch.dev_cider)
    assert read_stages(run)[-1].kept == best.epoch
    assert history[-1].epoch == min(best.epoch + 2, 8)  # which is best depends on JAX' release
    switches |= {"learning_rate": 0.0, "extractor_learning_rate": 0.0}
    history, *_ = on_jax(tune_cases.tune, tmp_path / "same", data, tuned, **switches)
    assert read_stages(tmp_path / "same")[-1].kept == 1 and len(history) == 3


def test_a_photo_that_cannot_be_read_is_left_out(tmp_path: Path, on_jax: On, data: Path, start: Path) -> None:
    here = shutil.copytree(data, tmp_path / "flickr8k")
    name = sorted(path.name for path in (here / "Flicker8k_Dataset").iterdir())[3]
    (here / "Flicker8k_Dataset" / name).write_bytes(b"no photo")
    history, unreadable, _ = on_jax(tune_cases.tune, tmp_path / "run", here, start, epochs=2)
    assert list(unreadable) == [name] and len(history) == 1
    for path in (here / "Flicker8k_Dataset").iterdir():
        path.write_bytes(b"no photo")
    assert "not one photo" in on_jax(tune_cases.refusal, tmp_path / "none", here, start)


def test_what_it_refuses(tmp_path: Path, on_jax: On, data: Path, start: Path, tuned: Path) -> None:
    def refusal(*arguments: Any, **switches: Any) -> str:
        return str(on_jax(tune_cases.refusal, tmp_path / "run", data, start, *arguments, **switches))

    assert "`self_critical` or `distillation`" in refusal(objective="cross_entropy")
    assert "distillation needs --teacher" in refusal(objective="distillation")
    assert "train.teacher_view" in refusal([tuned], objective="distillation", teacher_view="plain")
    assert "distillation needs --teacher" in refusal([tuned])
    assert "name a block" in refusal(extractor_layer="none")
    assert "no block 'mixed7'" in refusal(extractor_layer="mixed7")
    assert "no trained run here" in refusal([tmp_path / "gone"], objective="distillation")
    assert "failed (RESOURCE_EXHAUSTED); if its memory ran out, lower train.batch_images" in str(
        on_jax(tune_cases.out_of_memory, tmp_path / "full", data, start)
    )
    assert "the loss is nan" in refusal(learning_rate=1e30, extractor_learning_rate=1e30)
    one_step = refusal(learning_rate=1e30, extractor_learning_rate=1e30, evaluate_every=1, batch_images=100)
    assert "epoch 1, dev: the loss is nan" in one_step
    lower = on_jax(tune_cases.refusal, tmp_path / "run", data, tuned, extractor_layer="mixed9")
    assert "from a lower block on; set the same train.extractor_layer" in lower
    other = on_jax(tune_cases.start_run, tmp_path / "other", write_tiny_flickr8k(tmp_path / "few", train=3, dev=1))
    assert "its vocabulary is not that of" in refusal([other], objective="distillation")
    assert "another configuration" in str(
        on_jax(tune_cases.refusal, tuned, data, start, epochs=60, evaluate_every=20, seed=9)
    )
    fewer = write_tiny_flickr8k(tmp_path / "fewer", train=12, dev=6)
    assert "another --data" in str(on_jax(tune_cases.refusal, tuned, fewer, start, epochs=60, evaluate_every=20))
    lost = shutil.copytree(data, tmp_path / "lost")
    next((lost / "Flicker8k_Dataset").glob("0001*")).write_bytes(b"no photo")
    assert "another --data" in str(on_jax(tune_cases.refusal, tuned, lost, start, epochs=60, evaluate_every=20))
    assert "another --encoder-weights" in str(
        on_jax(tune_cases.refusal, tuned, data, start, extractor_seed=4, epochs=60, evaluate_every=20)
    )
    other_weights = on_jax(tune_cases.refusal, tmp_path / "run", data, tuned, extractor_seed=4)
    assert f"{tuned}: trained on other Inception weights than those of --encoder-weights" in other_weights
    assert "another --from" in str(
        on_jax(tune_cases.refusal, tuned, data, on_jax(tune_cases.start_run, tmp_path / "b", data, seed=8), epochs=60,
               evaluate_every=20)
    )  # fmt: skip


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_the_rate_rises_within_a_tenth_of_all_steps(
    tmp_path: Path, on_jax: On, data: Path, start: Path, decay: str
) -> None:
    """However few there are. The average forgets faster at first."""
    found = on_jax(tune_cases.rates, tmp_path / "run", data, start, epochs=20, warmup_steps=50, decay=decay)
    decoder, extractor, average = np.transpose(found)
    steps, expected = np.arange(40), np.array([0.25, 0.5, 0.75, *[1.0] * 37])
    if decay == "cosine":
        expected *= 0.5 * (1 + np.cos(np.pi * steps / 40))
    np.testing.assert_allclose(decoder, 0.01 * expected, rtol=1e-6)
    np.testing.assert_allclose(extractor, 0.003 * expected, rtol=1e-6)
    np.testing.assert_allclose(average, np.minimum(0.9, (steps + 1) / (steps + 10)), rtol=1e-6)


def test_cross_entropy_counts_by_its_weight_and_is_smoothed(
    tmp_path: Path, on_jax: On, data: Path, start: Path
) -> None:
    """Beside the reward: the loss is linear in the weight, and that of people's captions in the smoothing."""
    cases = [
        {"cross_entropy_weight": weight, "label_smoothing": smoothing}
        for weight, smoothing in ((0.0, 0.0), (1.0, 0.0), (2.5, 0.0), (1.0, 0.5), (1.0, 0.2))
    ]
    without, *losses = on_jax(tune_cases.batch_losses, tmp_path / "run", data, start, cases)
    plain, weighted, smooth, between = np.array(losses) - without
    assert plain > 1 and abs(smooth - plain) > 0.01
    np.testing.assert_allclose(weighted, 2.5 * plain, rtol=1e-4)
    np.testing.assert_allclose(between - plain, 0.4 * (smooth - plain), rtol=1e-3)


def test_photos_are_cropped_jittered_erased_and_mixed_as_the_switches_say(
    tmp_path: Path, on_jax: On, data: Path, start: Path, tuned: Path
) -> None:
    cases: list[dict[str, float]] = [
        {}, {"smallest_crop": 0.2}, {"color_jitter": 0.8}, {"random_erasing": 1.0}, {"mixup": 1.0}
    ]  # fmt: skip
    losses = on_jax(tune_cases.batch_losses, tmp_path / "run", data, start, cases, [tuned], objective="distillation")
    assert min(np.diff(sorted(losses))) > 1e-4


def test_captions_that_are_not_read_are_told_where_people_s_captions_are_learned(
    tmp_path: Path, on_jax: On, data: Path, start: Path, tuned: Path
) -> None:
    told = ["48 of 80 training captions are not read: of each image only the first 2 are (train.captions_per_image)"]
    for teachers, weight, expected in (([], 1.0, told), ([], 0.0, []), ([tuned], 1.0, [])):
        objective = "distillation" if teachers else "self_critical"
        switches = {"objective": objective, "cross_entropy_weight": weight, "captions_per_image": 2}
        assert on_jax(tune_cases.not_learned, tmp_path / "run", data, start, teachers, **switches) == expected
        (tmp_path / "run").rmdir()


def test_captions_without_words_are_told(tmp_path: Path, on_jax: On, data: Path, start: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    tokens = tmp_path / "data" / "Flickr8k.token.txt"
    tokens.write_text(tokens.read_text().replace("\tA red square on a white wall .", "\t123", 1))
    told = "without a word after cleaning: 1 of 80 train captions, first of 0000_square.jpg; left out: 0 of 16 photos"
    assert on_jax(tune_cases.not_learned, tmp_path / "run", tmp_path / "data", start) == [told]


def test_the_command_tunes_as_it_is_told(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inception up to any blocks, of the weights given, in the precision of the run."""
    told: list[Any] = []

    class Told:
        finished, device, unreadable = True, "a device", {"a.jpg": "no photo"}
        not_learned = ("captions are cut",)

        def __init__(self, *given: Any, **options: Any) -> None:
            told.extend((given, options))

    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # which the command sets, here where Keras is imported already
    monkeypatch.setitem(sys.modules, "caplet_export.tune", SimpleNamespace(Tuner=Told))
    monkeypatch.setattr("caplet_export.inception.build_extractor", lambda *given: given)
    monkeypatch.setattr("caplet_export.features.weights_digest", lambda weights: f"digest of {weights}")
    monkeypatch.setattr("caplet_export.verbs.tune.tell_end", lambda _: None)
    CONFIG.save(tmp_path / "config.json")
    command = ["tune", "run", "--data", str(data), "--from", str(tmp_path)]
    for options, objective, weights, precision in (
        ([], "self_critical", "imagenet", "bfloat16"),
        (["--teacher", "s", "t", "--encoder-weights", "w.h5"], "distillation", "w.h5", "bfloat16"),
        (["--config", str(tmp_path / "config.json")], CONFIG.train.objective, "imagenet", CONFIG.train.precision),
    ):
        told.clear()
        assert main([*command, *options, "--set", "train.seed=9"]) == 0
        (folder, config, read), given = told
        assert (folder, read) == (Path("run"), read_dataset(data))
        assert (config.train.objective, config.train.precision, config.train.seed) == (objective, precision, 9)
        assert config.model.blocks == CONFIG.model.blocks
        assert given.pop("build")(["mixed9"]) == (weights, precision, ["mixed9"])
        teachers = [Path("s"), Path("t")] if objective == "distillation" else []
        assert given == {"start_from": tmp_path, "encoder_weights": f"digest of {weights}", "teachers": teachers}
        told_of = ["left out a.jpg: no photo", "captions are cut"]
        assert capsys.readouterr().err.splitlines() == [f"caplet-export tune: {what}" for what in told_of]


def test_ends_are_drawn_and_learned(on_jax: On, tuned: Path, data: Path) -> None:
    """Captions of the tiny world end in their full stop's place, not at the limit."""
    ids = on_jax(tune_cases.greedy, tuned, data)
    assert (ids == END).any(axis=1).all()
