"""Training: what a batch holds, what the loss counts, and that a run goes on exactly where it stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from caplet_export.batches import Batches, caption_ids, not_learned, padded_length
from caplet_export.checkpoint import load_checkpoint
from caplet_export.cli import main
from caplet_export.config import Config, ModelConfig, TextConfig, TrainConfig, changed_switches, load_config
from caplet_export.ensemble import average_runs, join_runs
from caplet_export.errors import ConfigurationError, DataError, ExportError
from caplet_export.extractor_part import ExtractorPart, extractor_digest, load_extractor_part
from caplet_export.features import FeatureStore, JoinedStores, StoreSource, extract
from caplet_export.flickr8k import Dataset, read_dataset
from caplet_export.freerun import FreeRunner, sample
from caplet_export.metrics import CiderD, corpus_scores, references_of
from caplet_export.model import CaptionModel
from caplet_export.outputs import GRAPHS, RUN, check_folder
from caplet_export.runs import Epoch, Run, data_digest, dropped, split_words
from caplet_export.stages import ALL, Stage, read_stages
from caplet_export.text import END, PAD, SPECIALS, START, UNKNOWN, Vocabulary
from caplet_export.tokenizer import tokenize
from caplet_export.train import Stores, Trainer, _optimizer
from tiny_encoder import CONFIG as TINY
from tiny_encoder import build_tiny_model
from tiny_flickr8k import write_tiny_flickr8k

LOCATIONS, CHANNELS = 4, 6
CONFIG = Config(
    TextConfig(minimum_count=1, max_length=4),
    ModelConfig(
        locations=LOCATIONS, channels=CHANNELS, feature_size=16, attention_size=8, embedding_size=16, state_size=24
    ),
    TrainConfig(batch_images=4, epochs=3, patience=0, learning_rate=0.01, warmup_steps=2, views="plain", ema_decay=0.0),
)


def tiny_stores(folder: Path, dataset: Dataset, seed: int = 0) -> Stores:
    """Stand-in features that tell colour and shape apart, without Inception."""
    random = np.random.default_rng(seed)
    codes: dict[str, np.ndarray] = {}

    def run(names: list[str]) -> np.ndarray:
        return np.stack([codes[name] for name in names])

    for name, captions in dataset.captions.items():
        kind = " ".join(sorted(tokenize(captions[3])))
        codes.setdefault(kind, random.normal(size=(LOCATIONS, CHANNELS)))
        codes[name] = codes[kind]
    names = [name for split in dataset.splits.values() for name in split]
    source = StoreSource("stand-in", locations=LOCATIONS, channels=CHANNELS)
    order = iter(names)
    for _ in extract(
        {folder: source},
        names,
        lambda _: np.zeros((1, 1, 3), np.uint8),
        lambda pixels: [run([next(order) for _ in pixels])],
    ):
        pass
    store = FeatureStore(folder)
    return Stores([store], store)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_tiny_flickr8k(tmp_path_factory.mktemp("data") / "flickr8k"))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Stores:
    return tiny_stores(tmp_path_factory.mktemp("stores") / "mixed10-plain", dataset)


def with_train(**changes: object) -> Config:
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes))  # type: ignore[arg-type]


def finish(trainer: Trainer) -> Trainer:
    while not trainer.finished:
        trainer.run_epoch()
    return trainer


def end_epoch(trainer: Trainer, dev_cider: float = 10.0) -> Epoch:
    """Write what an epoch writes, without its steps: where only the files of a run matter, they need not be traced."""
    epoch = trainer._end_epoch(Epoch(len(trainer.history) + 1, 2.0, 3.0, dev_cider, 1.0))
    trainer._save_resume()
    return epoch


@pytest.fixture
def untraced() -> Iterator[None]:
    """Steps are run as they are written, without being traced first, which takes a second: for tests of one step."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


ONE_EPOCH = with_train(epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, stores: Stores) -> Path:
    """A run of `ONE_EPOCH`, done: each that is trained takes seconds to trace its steps. Read only."""
    return finish(Trainer(tmp_path_factory.mktemp("runs") / "trained", ONE_EPOCH, dataset, stores)).folder


@pytest.fixture
def run(tmp_path: Path, trained: Path) -> Path:
    """A copy of it, to be spoiled."""
    return shutil.copytree(trained, tmp_path / "run")


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("longer", "count", "max_length", "group", "told"),
    [
        (1, 2, 2, 3, []),
        (3, 1, 3, None, []),
        (3, 1, 2, 3, ["3 of 10 training captions are cut after 2 words (text.max_length)"]),
        (
            3, 2, 3, 3,
            ["3 of 23 words of the training captions are not in the vocabulary, so never said; most often: runs, sits, "
             "digs"],
        ),
        (
            3, 1, 3, 2,
            ["3 of 10 training captions are not read: of each image only the first 2 are (train.captions_per_image)"],
        ),
    ],
)  # fmt: skip
def test_captions_of_which_much_is_left_out_are_told(
    longer: int, count: int, max_length: int, group: int | None, told: list[str]
) -> None:
    """Of images with four, three, two and one caption."""
    captions = [["a", "dog"]] * (10 - longer) + [["a", "dog", verb] for verb in ("runs", "sits", "digs")[:longer]]
    vocabulary = Vocabulary.build(captions, count)
    of_images = [captions[:4], captions[4:7], captions[7:9], captions[9:]]
    assert not_learned(of_images, vocabulary, max_length, group) == told


def test_what_is_read_and_what_is_said() -> None:
    vocabulary = Vocabulary.build([["a", "dog", "runs"]], minimum_count=1)
    captions = [["a", "dog"], ["a", "cat", "runs", "a"], ["a", "dog", "runs"]]
    tokens, targets = caption_ids([captions, captions[:1]], vocabulary, max_length=3, group=4)
    a, dog, runs = vocabulary.encode(["a", "dog", "runs"])
    assert tokens[0].tolist() == [[START, a, dog, PAD], [START, a, UNKNOWN, PAD], [START, a, dog, runs], [PAD] * 4]
    # The second caption is cut at the limit, so there is no end to learn from it.
    assert targets[0].tolist() == [[a, dog, END, PAD], [a, UNKNOWN, runs, PAD], [a, dog, runs, END], [PAD] * 4]
    for ids, first in ((tokens, [START, a, dog, PAD]), (targets, [a, dog, END, PAD])):
        assert ids[1].tolist() == [first, *[[PAD] * 4] * 3]
    assert caption_ids([captions], vocabulary, max_length=3, group=2)[0].tolist() == tokens[:1, :2].tolist()


def test_batches_have_few_lengths() -> None:
    assert [padded_length(length, 12) for length in range(1, 13)] == [4] * 4 + [7] * 3 + [10] * 3 + [12] * 2


def batches(dataset: Dataset, stores: Stores, **changes: object) -> Batches:
    captions = {name: [tokenize(caption) for caption in texts] for name, texts in dataset.captions.items()}
    vocabulary = Vocabulary.build((words for texts in captions.values() for words in texts), 1)
    arguments: dict[str, object] = {"max_length": 9, "group": 5, "batch_images": 6, "seed": 1, **changes}
    trained_on = {name: captions[name] for name in dataset.split("train")}
    return Batches(trained_on, stores.train, vocabulary, **arguments)  # type: ignore[arg-type]


def test_an_epoch_holds_every_image_once_with_its_own_captions(dataset: Dataset, stores: Stores) -> None:
    one_each = {name: [texts[number % 5]] for number, (name, texts) in enumerate(dataset.captions.items())}
    data = batches(dataclasses.replace(dataset, captions=one_each), stores, batch_images=5)  # of 4 to 9 words
    seen, lengths = [], []
    for features, tokens, targets, rows in data.epoch(1):
        assert tokens.shape == targets.shape
        assert tokens.shape[0] == features.shape[0]  # no rows for captions that no image has
        for feature, row in zip(features, rows, strict=True):
            np.testing.assert_array_equal(feature, stores.plain[data.names[row]])
        length = targets.shape[1]
        for ids, said in ((tokens, data._tokens), (targets, data._targets)):
            own = np.concatenate([said[row] for row in rows])
            np.testing.assert_array_equal(ids, own[:, :length])
            assert not own[:, length:].any(), "nothing but padding is cut off"
        seen += rows.tolist()
        lengths.append(sorted((data._targets[rows] != PAD).sum(axis=2).max(axis=1)))
    assert all(one[-1] <= other[0] for one, other in pairwise(sorted(lengths))), "long captions are with long ones"
    assert sorted(seen) == list(range(16))
    assert len(data) == 4


def test_an_epoch_draws_a_view_of_each_photo_and_in_order_they_are_plain(
    tmp_path: Path, dataset: Dataset, stores: Stores
) -> None:
    other = tiny_stores(tmp_path / "mixed10-other", dataset, seed=1).plain
    data = batches(dataset, Stores([stores.plain, other], stores.plain))
    drawn = []
    for features, *_, rows in data.epoch(1):
        for feature, row in zip(features, rows, strict=True):
            drawn += [view for view in (stores.plain, other) if np.array_equal(feature, view[data.names[row]])]
    assert len(drawn) == len(data.names) and set(drawn) == {stores.plain, other}
    in_order = np.concatenate([features for features, *_ in data.in_order()])
    np.testing.assert_array_equal(in_order, stores.plain.gather(data.names))


def test_photos_that_were_skipped_in_a_view_are_in_no_batch(
    tmp_path: Path, dataset: Dataset, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = dataset.split("train")
    other = tiny_stores(tmp_path / "mixed10-other", dataset).plain
    monkeypatch.setattr(other, "skipped", frozenset({first}))
    assert batches(dataset, Stores([stores.plain, other], stores.plain)).names == others
    monkeypatch.setattr(stores.plain, "skipped", frozenset(dataset.split("train")))
    with pytest.raises(DataError, match=rf"^none of 16 images could be read .*; the first: {first}$"):
        batches(dataset, stores)


def test_the_order_is_fixed_by_seed_and_epoch(dataset: Dataset, stores: Stores) -> None:
    def order(data: Batches, epoch: int) -> list[int]:
        return [row for *_, rows in data.epoch(epoch) for row in rows]

    assert order(batches(dataset, stores), 1) == order(batches(dataset, stores), 1)
    assert order(batches(dataset, stores), 1) != order(batches(dataset, stores), 2)
    assert order(batches(dataset, stores), 1) != order(batches(dataset, stores, seed=2), 1)


def test_missing_features_are_said(dataset: Dataset, stores: Stores) -> None:
    data = dataclasses.replace(dataset, splits={"train": ["stranger.jpg"]}, captions={"stranger.jpg": ["A dog ."]})
    with pytest.raises(DataError, match=r"no features of 1 images, first stranger\.jpg"):
        batches(data, stores)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_it_learns_the_made_up_world(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    config = with_train(epochs=20, learning_rate=0.03, label_smoothing=0.0)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.1))
    trainer = finish(Trainer(tmp_path / "run", config, dataset, stores))
    assert trainer.history[-1].dev_loss < 1.0 < trainer.history[0].dev_loss
    checkpoint = load_checkpoint(tmp_path / "run")
    name = dataset.split("dev")[0]
    ids = FreeRunner(checkpoint.model, 9).greedy(stores.plain.gather([name]))
    colour_and_shape = set(tokenize(dataset.captions[name][3])) - {"there", "is", "a"}
    assert colour_and_shape <= set(checkpoint.vocabulary.decode(ids[0]))


def test_the_dev_score_is_that_of_the_photos_that_were_read(
    tmp_path: Path, dataset: Dataset, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its document frequencies too: `tune`, `ablation` and `evaluate` have no others."""
    skipped, *read = dataset.split("dev")
    beginnings = [" ".join(caption.split()[:3]) for caption in dataset.captions[read[0]]]
    alike = dataclasses.replace(dataset, captions={**dataset.captions, skipped: beginnings})
    monkeypatch.setattr(stores.plain, "skipped", frozenset({skipped}))
    trainer = Trainer(tmp_path, CONFIG, alike, stores)
    colour = trainer.vocabulary.encode(["green"])  # that of the first which was read, and of no other
    trainer.model.output_bias.assign(50.0 * np.eye(len(trainer.vocabulary))[colour[0]])
    _, dev_cider = trainer._evaluate()
    ids = FreeRunner(trainer.model, 4).greedy(stores.plain.gather(read))
    captions = {name: trainer.vocabulary.decode(row, 4) for name, row in zip(read, ids, strict=True)}
    expected = corpus_scores(captions, references_of(dataset, read)).cider_d
    assert dev_cider == pytest.approx(expected) and expected > 0
    assert trainer.example == (read[0], " ".join(captions[read[0]])) and captions[read[0]]


@pytest.mark.usefixtures("untraced")
def test_padding_weighs_nothing(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    """The same captions with more padding behind them: the same loss, and the same weights after the step."""
    after = []
    for padding in (0, 4):
        config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dropout=0.0))
        trainer = Trainer(tmp_path / f"{padding}", config, dataset, stores)
        features, tokens, targets, rows = next(iter(trainer._train.epoch(1)))
        tokens, targets = (np.pad(part, [(0, 0), (0, padding)]) for part in (tokens, targets))
        loss = float(trainer._step(features, tokens, targets, rows))
        after.append((loss, [variable.numpy() for variable in trainer.model.trainable_variables]))
    assert after[0][0] == pytest.approx(after[1][0], abs=1e-5)
    for one, other in zip(after[0][1], after[1][1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.usefixtures("untraced")
def test_captions_that_a_photo_lacks_weigh_nothing(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    """The same captions, one of each photo, in groups of one and of five: the same gradient."""
    config = with_train(captions_per_image=1, gradient_norm=1e9)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0))
    gradients = []
    for group in (1, 5):
        trainer = Trainer(tmp_path / f"{group}", config, dataset, stores)
        features, *ids, rows = next(iter(trainer._train.epoch(1)))
        padded = [np.pad(part[:, None], [(0, 0), (0, group - 1), (0, 0)]).reshape(-1, part.shape[1]) for part in ids]
        trainer._train.group = group  # as if another photo had so many
        trainer._step(features, *padded, rows)
        gradients.append([momentum.numpy() for momentum in trainer._optimizers[0][0]._momentums])
    for one, five in zip(*gradients, strict=True):
        np.testing.assert_allclose(five, one, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("untraced")
def test_a_word_said_often_takes_no_larger_step(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    """Adam's moments (Kingma & Ba 2015) after one step are (1 - b1) g and (1 - b2) g², in an embedding too."""
    shape = dataclasses.replace(CONFIG.model, dropout=0.0, tied_embeddings=False)
    trainer = Trainer(tmp_path, dataclasses.replace(CONFIG, model=shape), dataset, stores)
    trainer._step(*next(iter(trainer._train.epoch(1))))
    optimizer = trainer._optimizers[0][0]
    for first, second in zip(optimizer._momentums, optimizer._velocities, strict=True):
        gradient = first.numpy() / (1 - optimizer.beta_1)
        np.testing.assert_allclose(second.numpy(), (1 - optimizer.beta_2) * gradient**2, rtol=1e-3, atol=1e-12)


def test_captions_without_words_teach_nothing_and_are_told(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    first, second, *_ = dataset.split("train")
    captions = {**dataset.captions, first: ["123", "a dog"], second: ["4", "..."]}
    spoiled = dataclasses.replace(dataset, captions=captions)
    words = split_words(spoiled, CONFIG)
    assert words["train"][first] == [["a", "dog"]]
    assert second not in words["train"]
    told = f"without a word after cleaning: 3 of 74 train captions, first of {first}; left out: 1 of 16 photos"
    assert dropped(spoiled, words) == Trainer(tmp_path, CONFIG, spoiled, stores).not_learned[:1] == [told]
    assert dropped(dataset, split_words(dataset, CONFIG)) == []


def test_photos_whose_features_could_not_be_made_are_told(
    tmp_path: Path, dataset: Dataset, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, dev = dataset.split("train"), dataset.split("dev")
    monkeypatch.setattr(stores.plain, "skipped", frozenset({*train[3:5], dev[1]}))
    advice = "run `caplet-export features` again to retry them"
    *told, cut = Trainer(tmp_path, CONFIG, dataset, stores).not_learned
    assert "are cut" in cut
    assert told == [
        f"2 of 16 train photos could not be read when their features were stored, first {train[3]}; {advice}",
        f"1 of 4 dev photos could not be read when their features were stored, first {dev[1]}; {advice}",
    ]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_captions_without_a_single_word_are_told_as_such(dataset: Dataset, split: str) -> None:
    """There were "no images"."""
    first, *others = dataset.split(split)
    captions = {**dataset.captions, first: ["4 x 4"], **{name: ["..."] for name in others}}
    told = rf"^cleaning \(text\.rules=tutorial\) leaves no word of the {split} captions; the first: 4 x 4$"
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, rules="tutorial"))
    with pytest.raises(DataError, match=told):
        split_words(dataclasses.replace(dataset, captions=captions), config)


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("a sheet of A4 with a hole and another hole", []),
        (
            "a sheet of A4 with a hole and another",
            ["1 of 9 words of the training captions are dropped because they contain a digit, first A4"],
        ),
        (
            "2人の男性。 犬",
            ["1 of 2 words of the training captions are dropped because they contain a digit, first 2人の男性。"],
        ),
    ],
)
def test_many_words_with_a_digit_are_told(dataset: Dataset, caption: str, told: list[str]) -> None:
    """As in names of products, or where Japanese has no spaces, so that a digit costs the sentence."""
    (name, *_), dev = dataset.split("train"), dataset.split("dev")
    few = dataclasses.replace(
        dataset, captions={**dataset.captions, name: [caption]}, splits={"train": [name], "dev": dev}
    )
    assert dropped(few, split_words(few, CONFIG)) == told


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_masked_mean_over_words(
    tmp_path: Path, dataset: Dataset, stores: Stores, smoothing: float
) -> None:
    """Against the definition, written out in NumPy."""
    config = dataclasses.replace(
        with_train(label_smoothing=smoothing), model=dataclasses.replace(CONFIG.model, dropout=0.0)
    )
    trainer = Trainer(tmp_path, config, dataset, stores)
    features, tokens, targets, rows = next(iter(trainer._train.epoch(1)))
    logits, _ = trainer.model.teacher_forced(*trainer.model.encode(features), tokens, config.train.captions_per_image)
    logits = logits.numpy().astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    log_probs = (1 - smoothing) * log_probs + smoothing * log_probs.mean(axis=-1, keepdims=True)
    said = [-log_probs[n, t, word] for n, row in enumerate(targets) for t, word in enumerate(row) if word != PAD]
    assert float(trainer._step(features, tokens, targets, rows)) == pytest.approx(np.mean(said), abs=1e-4)


def first_gradients(folder: Path, dataset: Dataset, stores: Stores, **switches: float) -> tuple[Trainer, list[Any]]:
    """A trainer without dropout, before its first step, and the gradients of that step, as Adam was given them."""
    config = dataclasses.replace(with_train(**switches), model=dataclasses.replace(CONFIG.model, dropout=0.0))
    stepped, fresh = (Trainer(folder / name, config, dataset, stores) for name in ("stepped", "fresh"))
    stepped._step(*next(iter(stepped._train.epoch(1))))
    optimizer = stepped._optimizers[0][0]
    return fresh, [momentum.numpy() / (1 - optimizer.beta_1) for momentum in optimizer._momentums]


@pytest.mark.usefixtures("untraced")
def test_attention_that_misses_a_location_costs_its_square(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    """By what the gradient gains from it, against the definition (eq. 14 of Xu et al., with a mean over locations)."""
    switches = {"gradient_norm": 1e9, "attention_regularisation": 0.7}
    trainer, whole = first_gradients(tmp_path / "with", dataset, stores, **switches)
    _, without = first_gradients(tmp_path / "without", dataset, stores, **switches | {"attention_regularisation": 0.0})
    features, tokens, targets, _ = next(iter(trainer._train.epoch(1)))
    with tf.GradientTape() as tape:
        encoded = trainer.model.encode(features)
        _, attention = trainer.model.teacher_forced(*encoded, tokens, CONFIG.train.captions_per_image)
        lengths = (targets != PAD).sum(axis=1)
        missed = [1 - tf.reduce_sum(said[:length], axis=0) for said, length in zip(attention, lengths, strict=True)]
        cost = 0.7 * tf.reduce_mean(tf.stack(missed) ** 2)
    variables = [variable.value for variable in trainer._variables]
    expected = tape.gradient(cost, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    assert max(float(abs(tf.convert_to_tensor(each)).numpy().max()) for each in expected) > 1e-3
    for one, other, gain in zip(whole, without, expected, strict=True):
        np.testing.assert_allclose(one - other, tf.convert_to_tensor(gain), rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("untraced")
def test_gradients_are_scaled_down_together(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    _, whole = first_gradients(tmp_path / "whole", dataset, stores, gradient_norm=1e9)
    _, short = first_gradients(tmp_path / "short", dataset, stores, gradient_norm=0.01)
    norm = np.sqrt(sum((gradient**2).sum() for gradient in whole))
    assert norm > 0.1
    for one, other in zip(whole, short, strict=True):
        np.testing.assert_allclose(other, one * 0.01 / norm, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_the_learning_rate_rises_within_a_tenth_of_all_steps_and_falls_to_zero(decay: str) -> None:
    optimizer = _optimizer(0.4, 40, dataclasses.replace(CONFIG.train, warmup_steps=50, decay=decay))
    rates = []
    for step in range(41):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    falling = 0.2 * (1 + np.cos(np.pi * np.arange(37) / 36))
    expected = [0, 0.1, 0.2, 0.3, *falling] if decay == "cosine" else [0.4] * 41
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    trainer = finish(Trainer(tmp_path, with_train(epochs=40, patience=2), dataset, stores))
    best = max(epoch.dev_cider for epoch in trainer.history)
    assert trainer.kept is not None
    assert trainer.kept.dev_cider == best
    assert len(trainer.history) == min(40, trainer.kept.epoch + 2)
    checkpoint = load_checkpoint(tmp_path)
    names = dataset.split("dev")
    ids = FreeRunner(checkpoint.model, 9).greedy(stores.plain.gather(names))
    scorer = CiderD({n: [tokenize(caption) for caption in dataset.captions[n]] for n in names})
    captions = [checkpoint.vocabulary.decode(row)[:9] for row in ids]
    assert 100 * scorer.score_many(names, captions).mean() == pytest.approx(best, abs=0.01)


def test_the_average_of_a_short_run_is_of_what_it_learned(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    """Not of the weights that it began with: 12 steps of a decay of 0.999 would leave 99% of those."""
    trainer = finish(Trainer(tmp_path, with_train(ema_decay=0.999), dataset, stores))
    learned, _ = trainer._evaluate()
    assert trainer.history[-1].dev_loss == pytest.approx(learned, abs=0.02)
    assert trainer.history[-1].dev_loss != learned, "it is the average that is scored"


# -- stopping and going on --------------------------------------------------------------------------------------------


def weights(folder: Path) -> list[np.ndarray]:
    return [variable.numpy() for variable in load_checkpoint(folder).model.trainable_variables]


@pytest.mark.parametrize("objective", ["cross_entropy", "self_critical", "distillation"])
def test_a_run_resumed_equals_a_run_uninterrupted(
    tmp_path: Path, dataset: Dataset, stores: Stores, trained: Path, objective: str
) -> None:
    teacher = trained if objective == "distillation" else None
    mixup = 0.5 if objective == "distillation" else 0.0
    config = with_train(objective=objective, ema_decay=0.5, learning_rate=1e-3, mixup=mixup)
    assert config.model.dropout

    def begun(name: str) -> Trainer:
        return Trainer(tmp_path / name, config, dataset, stores, teacher=teacher)

    whole, twin = begun("whole"), begun("twin")
    for one, other in zip(whole._state(), twin._state(), strict=True):
        np.testing.assert_array_equal(one, other, "what follows is fixed by the seed")
    whole.run_epoch()
    shutil.copytree(tmp_path / "whole", tmp_path / "pieces")
    finish(whole)
    finish(begun("pieces"))
    pieces = begun("pieces")
    assert pieces.finished
    assert [e.epoch for e in pieces.history] == [1, 2, 3]
    assert [e.train_loss for e in pieces.history] == pytest.approx([e.train_loss for e in whole.history], abs=1e-5)
    for one, other in zip(weights(tmp_path / "whole"), weights(tmp_path / "pieces"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


class Untaught(Run):
    """A run whose weights are the number of its epochs."""

    device = "a machine"

    def _save_weights(self, decoder: Path, extractor: Path | None = None) -> None:
        decoder.write_text(f"{len(self.history)}")
        if extractor:
            if len(self.history) > 1:
                raise OSError("disk full")
            extractor.write_text(f"{len(self.history)}")

    def _state(self) -> list[np.ndarray]:
        return [np.array(len(self.history))]

    def _set_state(self, state: Sequence[np.ndarray]) -> None:
        self.weights = int(state[0])

    def end(self, dev_cider: float, seconds: float, dev_loss: float = 3.0) -> None:
        self._end_epoch(Epoch(len(self.history) + 1, 2.0, dev_loss, dev_cider, seconds))
        self._save_resume()


@pytest.mark.parametrize(("patience", "kept"), [(2, 2), (0, 4)])
def test_what_a_run_keeps_and_tells(tmp_path: Path, patience: int, kept: int) -> None:
    """With patience the best epoch, the first of two; without, the last. And what was killed before it told it all."""
    config, folder = with_train(epochs=5, patience=patience), tmp_path / "run"

    def begun() -> Untaught:
        run = Untaught(folder, config, Vocabulary.build([["a", "dog"]], 1), "digest")
        run._resume()
        return run

    run, scores = begun(), [10.0, 30.0, 30.0, 20.0]
    for score in scores:
        assert not run.finished
        run.end(score, 1.26)
    assert run.finished == bool(patience)
    assert (folder / "decoder.weights.h5").read_text() == f"{kept}"
    told = Stage("run", 1, 4, kept, scores[kept - 1], 5.0, changed_switches(config), "a machine", "digest")
    assert read_stages(folder) == [told]
    records = {name: (folder / name).read_text() for name in ("history.json", "stages.json")}
    (folder / "history.json").write_bytes(b"[\xff")  # as a broken disk gives it back
    (folder / "stages.json").write_text("[]")
    again = begun()
    assert (again.weights, again.history) == (4, run.history)
    assert {name: (folder / name).read_text() for name in records} == records
    again.end(0.0, 1.0)
    assert begun().finished
    with np.load(folder / "resume.npz") as arrays:
        content = {**arrays, "origin": np.array(json.dumps({**json.loads(str(arrays["origin"])), "format": 1}))}
    np.savez(folder / "resume.npz", **content)
    with pytest.raises(ConfigurationError, match="begun by an earlier release"):
        begun()


def test_where_scores_are_equal_the_loss_decides(tmp_path: Path) -> None:
    """The CIDEr-D of a single dev photo is always 0, since it weighs words by how many photos they occur in."""
    run = Untaught(tmp_path, with_train(epochs=9, patience=2), Vocabulary.build([["a", "dog"]], 1), "digest")
    for loss in (5.0, 4.0, 3.0, 2.0, 2.5, 2.5):
        assert not run.finished
        run.end(0.0, 1.0, loss)
    assert run.finished and run.kept == run.history[3]
    assert (tmp_path / "decoder.weights.h5").read_text() == "4"
    run.end(0.1, 1.0, 6.0)
    assert run.kept == run.history[-1]


def test_decoder_and_extractor_are_of_one_epoch(tmp_path: Path) -> None:
    run = Untaught(tmp_path, with_train(extractor_layer="mixed7"), Vocabulary.build([["a", "dog"]], 1), "digest")
    run.end(10.0, 1.0)
    with pytest.raises(ConfigurationError, match="disk full"):
        run.end(20.0, 1.0)
    assert {(tmp_path / name).read_text() for name in ("decoder.weights.h5", "extractor.npz")} == {"1"}


def test_weights_of_two_epochs_are_not_read(run: Path, tmp_path: Path) -> None:
    """As a run leaves them that is killed between putting its two files in place, until it goes on."""
    for name in (".decoder.weights.h5", ".extractor.npz"):
        (run / name).write_text("half of the n")
    load_checkpoint(run)  # killed before
    (run / ".decoder.weights.h5").unlink()
    with pytest.raises(ConfigurationError, match="stopped while it saved an epoch, so its weights are of two"):
        load_checkpoint(run)
    folder = tmp_path / "on"
    begun = Untaught(folder, with_train(extractor_layer="mixed7"), Vocabulary.build([["a", "dog"]], 1), "digest")
    begun._resume()
    begun.end(10.0, 1.0)
    (folder / ".extractor.npz").write_text("2")
    begun._resume()
    assert (folder / "extractor.npz").read_text() == "2" and not (folder / ".extractor.npz").exists()


@pytest.mark.parametrize("missing", [0, 1])
def test_an_epoch_begins_to_be_written_where_there_is_room_for_twice_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    run = Untaught(tmp_path, with_train(), Vocabulary.build([["a", "dog"]], 1), "digest")
    monkeypatch.setattr(run, "_state", lambda: [np.zeros(1_000_000), np.zeros(500_000)])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=25_000_000 - missing))
    if missing:
        with pytest.raises(ConfigurationError, match="no room for the 24 MB that are to be written"):
            run.end(1.0, 1.0)
    else:
        run.end(1.0, 1.0)
    assert bool(list(tmp_path.iterdir())) != bool(missing)


def test_a_run_is_of_its_captions_and_of_the_photos_of_both_splits(dataset: Dataset) -> None:
    train, dev = dataset.split("train"), dataset.split("dev")
    other = dataclasses.replace(dataset, captions={**dataset.captions, train[0]: ["A dog ."]})
    of = [(dataset, train, dev), (other, train, dev), (dataset, train[1:], dev), (dataset, train, dev[1:])]
    assert len({data_digest(*given) for given in of}) == 4
    for split in ("train", "dev"):
        with pytest.raises(DataError, match="both the train and the dev split"):
            split_words(dataclasses.replace(dataset, splits={**dataset.splits, split: []}), CONFIG)


def test_killed_while_training_it_loses_an_epoch_at_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tiny_flickr8k(tmp_path / "data")
    tiny_stores(tmp_path / "features" / "mixed10-plain", read_dataset(data))
    with_train(epochs=4).save(tmp_path / "config.json")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "caplet_export", "train", str(run), "--data", str(data)]
    command += ["--features", str(tmp_path / "features"), "--config", str(tmp_path / "config.json")]

    def epochs() -> int:
        path = run / "history.json"
        return len(json.loads(path.read_text())) if path.exists() else 0

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while epochs() < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = epochs()
    assert kept >= 2
    assert main(command[3:]) == 0
    said = capsys.readouterr().out
    assert epochs() == 4
    assert f"epoch {kept + 1 if kept < 4 else 4:3d}" in said or kept == 4
    first = read_dataset(data).split("dev")[0]
    assert len(re.findall(rf"^ {{11}}{re.escape(first)}: ", said, re.M)) == 4 - kept
    assert "epoch   1" not in said
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_of_another_configuration_is_left_alone(trained: Path, dataset: Dataset, stores: Stores) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    with pytest.raises(ConfigurationError, match=r"another configuration, train\.seed=1; use another"):
        Trainer(trained, with_train(epochs=1, seed=2), dataset, stores)
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    """Both would keep weights there, and the records of one would be of those of the other."""
    import fcntl

    other = os.open(tmp_path, os.O_RDONLY)  # locks are of descriptors, so this one is as good as another process's
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ExportError, match="another caplet-export is writing to it"):
        Trainer(tmp_path, ONE_EPOCH, dataset, stores)
    os.close(other)
    assert Trainer(tmp_path, ONE_EPOCH, dataset, stores).history == []


def test_a_run_that_another_process_began_in_the_meantime_is_left_alone(
    tmp_path: Path, run: Path, dataset: Dataset, stores: Stores
) -> None:
    """Setting up takes seconds between the first look at the folder and the first write."""
    folder = tmp_path / "folder"

    class Slow(Trainer):
        def _prepare_steps(self) -> None:
            super()._prepare_steps()
            shutil.copytree(run, folder)

    with pytest.raises(ConfigurationError, match=r"another configuration, train\.seed=1"):
        Slow(folder, with_train(epochs=1, seed=2), dataset, stores)


@pytest.mark.usefixtures("untraced")
def test_what_was_refused_or_lost_claims_no_folder(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    """So that the command can be put right and given again."""
    with pytest.raises(ConfigurationError, match="distillation needs --teacher"):
        Trainer(tmp_path, with_train(objective="distillation"), dataset, stores)
    with pytest.raises(ConfigurationError, match=r"lower train\.learning_rate"):
        finish(Trainer(tmp_path, with_train(learning_rate=1e30, batch_images=8), dataset, stores))
    assert not Trainer(tmp_path, ONE_EPOCH, dataset, stores).history


def test_weights_that_cannot_be_gone_on_with_are_not_written_over(
    tmp_path: Path, trained: Path, run: Path, dataset: Dataset, stores: Stores
) -> None:
    """Such as what `join` made, or a run whose resume.npz was deleted."""
    mean = tmp_path / "mean"
    mean.mkdir()
    average_runs([trained, run], mean)
    (run / "resume.npz").unlink()
    for folder in (mean, run):
        before = (folder / "decoder.weights.h5").read_bytes()
        with pytest.raises(ConfigurationError, match=r"no resume\.npz to go on with"):
            Trainer(folder, load_checkpoint(folder).config, dataset, stores)
        assert (folder / "decoder.weights.h5").read_bytes() == before


def test_a_run_goes_on_with_what_it_began_with_only(
    tmp_path: Path, trained: Path, dataset: Dataset, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same captions, the same features, the same start, the same teacher."""
    shutil.copytree(trained, tmp_path / "one")
    end_epoch(Trainer(tmp_path / "two", with_train(epochs=1, seed=2), dataset, stores))
    config, run = with_train(objective="distillation"), tmp_path / "run"

    def trainer(data: Dataset = dataset, start_from: str = "one", teacher: str = "two") -> Trainer:
        return Trainer(run, config, data, stores, start_from=tmp_path / start_from, teacher=tmp_path / teacher)

    end_epoch(trainer())
    for other in ({"start_from": "two"}, {"teacher": "one"}):
        option = "--from" if "start_from" in other else "--teacher"
        with pytest.raises(ConfigurationError, match=f"another {option}"):
            trainer(**other)
    for word in ("again", "7"):  # and what cleaning leaves nothing of, but references do
        said = {name: [f"{caption} {word}" for caption in captions] for name, captions in dataset.captions.items()}
        with pytest.raises(ConfigurationError, match="another --data"):
            trainer(dataclasses.replace(dataset, captions=said))
    monkeypatch.setattr(stores.plain, "skipped", frozenset(dataset.split("dev")[:1]))
    with pytest.raises(ConfigurationError, match="another --data"):
        trainer()
    monkeypatch.undo()
    source = dataclasses.replace(stores.plain.source, weights="others")
    for store in (*stores.train, stores.plain):
        monkeypatch.setattr(store, "source", source)
    with pytest.raises(ConfigurationError, match="another --features"):
        Trainer(tmp_path / "one", ONE_EPOCH, dataset, stores)
    for begun_with in ({"start_from": tmp_path / "one"}, {"teacher": tmp_path / "one"}):
        with pytest.raises(ConfigurationError, match=r"one: trained on other Inception weights than those of .*plain"):
            Trainer(tmp_path / "new", config, dataset, stores, **begun_with)
    monkeypatch.undo()
    (run / "stages.json").unlink()  # as if it had been killed just before
    assert len(trainer().history) == 1
    assert read_stages(run)[-1].epochs == 1

    for other in ("purple", "red and purple"):  # a word for another, and a word more
        captions = {name: [text.replace("red", other) for text in texts] for name, texts in dataset.captions.items()}
        with pytest.raises(ConfigurationError, match="other captions"):
            Trainer(tmp_path / "one", ONE_EPOCH, dataclasses.replace(dataset, captions=captions), stores)
    start = shutil.copytree(tmp_path / "one", tmp_path / "start")
    words = (start / "vocabulary.txt").read_text()
    (start / "vocabulary.txt").write_text(words.replace("red", "purple"))
    with pytest.raises(
        ConfigurationError, match=r"one: holds a run with another vocabulary, so of .* or another --from;"
    ):
        Trainer(tmp_path / "one", ONE_EPOCH, dataset, stores, start_from=start)


def test_self_critical_training_that_diverges_is_said(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    """Its rewards stay finite whatever becomes of the weights."""
    with pytest.raises(ConfigurationError, match=r"lower train\.learning_rate"):
        finish(Trainer(tmp_path, with_train(objective="self_critical", learning_rate=1e30), dataset, stores))


def test_self_critical_training_on_one_photo_is_refused_as_nothing_would_be_rewarded(dataset: Dataset) -> None:
    """All its n-grams are in every photo's captions, and so weigh nothing; other rewards do not depend on that."""
    first, *others = dataset.splits["train"]
    one = dataclasses.replace(dataset, splits={**dataset.splits, "train": [first]})
    two = dataclasses.replace(dataset, splits={**dataset.splits, "train": [first, others[0]]})
    with pytest.raises(DataError, match="two training photos or more: with one, CIDEr-D is always 0"):
        split_words(one, with_train(objective="self_critical"))
    for data, config in (
        (one, ONE_EPOCH),
        (one, with_train(objective="self_critical", reward_rouge=2.0)),
        (two, with_train(objective="self_critical")),
    ):
        assert split_words(data, config)["train"].keys() == set(data.splits["train"])


def test_views_stored_with_other_weights_are_refused(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    other = Blank([stores.plain])
    other.source = dataclasses.replace(stores.plain.source, weights="others")
    with pytest.raises(DataError, match="different Inception weights"):
        Trainer(tmp_path, CONFIG, dataset, Stores([stores.plain, other], stores.plain))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("others.h5", "mixed10-plain: stored with other Inception weights; give the same --encoder-weights"),
        ("gone.h5", "gone.h5: No such file"),
    ],
)
def test_inception_weights_that_are_given_are_those_of_the_features(
    weights: str, said: str, tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where nothing of Inception is trained."""
    tiny_stores(tmp_path / "mixed10-plain", dataset)
    (tmp_path / "others.h5").write_bytes(b"weights")
    command = ["train", str(tmp_path / "run"), "--data", str(dataset.images.parent), "--features", str(tmp_path)]
    assert main([*command, "--set", "train.views=plain", "--encoder-weights", str(tmp_path / weights)]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_trains_as_it_is_told(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the stores of its views; upper blocks of the weights given, in the run's precision, up to the run's block."""
    told: list[Any] = []

    class Told:
        finished = True
        not_learned = ("captions are cut",)

        def __init__(self, *given: Any, **options: Any) -> None:
            told.extend((given, options))

    def open_store(*given: Any) -> Any:
        return SimpleNamespace(given=given, source=SimpleNamespace(weights="digest"))

    monkeypatch.setattr("caplet_export.features.open_store", open_store)
    monkeypatch.setattr("caplet_export.features.weights_digest", lambda _: "digest")
    monkeypatch.setattr("caplet_export.inception.build_extractor", lambda *given: given)
    monkeypatch.setattr("caplet_export.train.Trainer", Told)
    monkeypatch.setattr("caplet_export.verbs.train.tell_end", lambda _: None)
    start, data = tmp_path / "start", dataset.images.parent
    start.mkdir()
    dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, feature_block="mixed9")).save(
        start / "config.json"
    )
    command = ["train", "run", "--data", str(data), "--features", "f", "--from", str(start), "--teacher", "t"]
    for options, weights, blocks in (
        (["--recipe", "fine_tune", "--encoder-weights", "w.h5"], "w.h5", ("mixed7",)),
        (["--recipe", "fine_tune"], "imagenet", ("mixed7",)),
        (["--recipe", "refine"], None, ("mixed9",)),
    ):
        told.clear()
        assert main([*command, *options, "--set", "train.precision=bfloat16", "--set", "train.views=plain flip"]) == 0
        (folder, config, read, stores), given = told
        assert (folder, config.train.precision, config.model.blocks) == (Path("run"), "bfloat16", ("mixed9",))
        assert read == read_dataset(data)
        assert stores.plain.given == (Path("f"), blocks, "plain")
        assert [view.given for view in stores.train] == [(Path("f"), blocks, view) for view in ("plain", "flip")]
        extractor = (weights, "bfloat16", ("mixed9",)) if weights else None
        assert given == {"start_from": start, "teacher": Path("t"), "extractor": extractor}
        assert capsys.readouterr().err == "caplet-export train: captions are cut\n"


def test_captioner_and_teacher_compute_in_the_precision_of_the_run(
    tmp_path: Path, trained: Path, dataset: Dataset, stores: Stores
) -> None:
    for precision in ("float32", "bfloat16"):
        config = with_train(objective="distillation", precision=precision)
        trainer = Trainer(tmp_path / precision, config, dataset, stores, start_from=trained, teacher=trained)
        assert trainer._teacher is not None
        for model in (trainer.model, trainer._teacher):
            assert model.encode(np.zeros((1, LOCATIONS, CHANNELS), np.float32))[0].dtype == precision


def test_a_damaged_resume_file_is_said(run: Path, dataset: Dataset, stores: Stores) -> None:
    path = run / "resume.npz"
    for content in (path.read_bytes()[:1000], b""):  # nothing is what a power cut leaves
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="damaged"):
            Trainer(run, ONE_EPOCH, dataset, stores)


def test_arrays_of_another_shape_are_said_in_a_line(run: Path, dataset: Dataset, stores: Stores) -> None:
    with np.load(run / "resume.npz") as arrays:
        content = {**arrays, "0": np.zeros((3, 3))}
    np.savez(run / "resume.npz", **content)
    with pytest.raises(ConfigurationError, match=r"resume\.npz: damaged \([^\n]{1,200}\); delete") as refused:
        Trainer(run, ONE_EPOCH, dataset, stores)
    assert "\n" not in str(refused.value)


def test_a_run_that_an_earlier_release_began_is_left_alone(run: Path, dataset: Dataset, stores: Stores) -> None:
    with np.load(run / "resume.npz") as arrays:
        content = {**arrays, "origin": np.array('["abc", null]')}
    np.savez(run / "resume.npz", **content)
    with pytest.raises(ConfigurationError, match="begun by an earlier release"):
        Trainer(run, ONE_EPOCH, dataset, stores)


def test_a_run_that_was_killed_before_its_first_epoch_was_whole_is_begun_again(
    run: Path, dataset: Dataset, stores: Stores
) -> None:
    for name in ("resume.npz", "history.json", "stages.json"):
        (run / name).unlink()
    for name in ("config.json", "decoder.weights.h5"):
        (run / f".{name}").write_bytes((run / name).read_bytes()[:20])
        (run / name).unlink()
    trainer = Trainer(run, ONE_EPOCH, dataset, stores)
    assert end_epoch(trainer).epoch == 1
    assert Trainer(run, ONE_EPOCH, dataset, stores).finished


@pytest.mark.parametrize("name", ["notes.txt", "vocabulary.txt", "config.json"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, dataset: Dataset, stores: Stores, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigurationError, match="holds something other than this run"):
        Trainer(tmp_path, CONFIG, dataset, stores)
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="not a folder that can be written to"):
        Untaught(tmp_path / "file" / "run", with_train(), Vocabulary.build([["a", "dog"]], 1), "digest")


def test_starting_from_a_run_begins_with_its_weights(
    tmp_path: Path, trained: Path, dataset: Dataset, stores: Stores
) -> None:
    second = Trainer(tmp_path / "second", with_train(seed=9), dataset, stores, start_from=trained)
    for one, other in zip(weights(trained), second.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(one, other.numpy())
    other_model = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, state_size=8))
    with pytest.raises(ConfigurationError, match=r"another configuration: model\.state_size=\d+$"):
        Trainer(tmp_path / "third", other_model, dataset, stores, start_from=trained)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path, run: Path) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(ConfigurationError, match="new: no trained run here"):
        load_checkpoint(tmp_path / "new")
    config = load_config(run / "config.json")
    dataclasses.replace(config, model=dataclasses.replace(config.model, state_size=8)).save(run / "config.json")
    with pytest.raises(ConfigurationError, match="weights of another configuration"):
        load_checkpoint(run)
    (run / "vocabulary.txt").write_text("<pad>\n<start>\n<end>\n<unk>\ndog\n")
    with pytest.raises(ConfigurationError, match=r"vocabulary\.txt has 5 words"):
        load_checkpoint(run)
    with pytest.raises(ConfigurationError, match="gone: no trained run here"):
        load_checkpoint(tmp_path / "gone")


# -- training the extractor's upper blocks ----------------------------------------------------------------------------


def small_extractor() -> keras.Model:
    """A stand-in with InceptionV3's block names: 2×2×3 at `mixed9`, 2×2×6 at `mixed10`."""
    keras.utils.set_random_seed(7)
    pixels = keras.Input((4, 4, 3))
    lower = keras.layers.AveragePooling2D(2, name="mixed9")(pixels)
    return keras.Model(pixels, keras.layers.Conv2D(CHANNELS, 1, activation="relu", name="mixed10")(lower))


@pytest.mark.parametrize("objective", ["cross_entropy", "self_critical"])
def test_upper_blocks_are_trained_saved_and_loaded(tmp_path: Path, dataset: Dataset, objective: str) -> None:
    names = [name for split in dataset.splits.values() for name in split]
    random = np.random.default_rng(0)
    source = StoreSource("stand-in", layer="mixed9", locations=4, channels=3)
    list(
        extract(
            {tmp_path / "mixed9-plain": source},
            names,
            lambda _: np.zeros((1, 1, 3), np.uint8),
            lambda pixels: [random.uniform(size=(len(pixels), 4, 3))],
        )
    )
    store = FeatureStore(tmp_path / "mixed9-plain")
    rates = {"learning_rate": 0.01, "extractor_learning_rate": 0.02, "decay": "constant"}
    config = with_train(extractor_layer="mixed9", epochs=1, objective=objective, **rates)
    with pytest.raises(ConfigurationError, match="needs --encoder-weights"):
        Trainer(tmp_path / "none", config, dataset, Stores([store], store))
    nothing = dataclasses.replace(config, train=dataclasses.replace(config.train, extractor_layer="mixed10"))
    with pytest.raises(ConfigurationError, match="mixed10: there is nothing above it to train"):
        Trainer(tmp_path / "none", nothing, dataset, Stores([store], store), extractor=small_extractor())
    extractor = small_extractor()
    before = extractor.get_layer("mixed10").kernel.numpy()
    run = tmp_path / "run"
    trainer = Trainer(run, config, dataset, Stores([store], store), extractor=extractor)
    trainer.run_epoch()
    assert [float(optimizer.learning_rate) for optimizer, _ in trainer._optimizers] == pytest.approx([0.01, 0.02])
    after = extractor.get_layer("mixed10").kernel.numpy()
    assert abs(after - before).max() > 1e-3
    again = small_extractor()
    load_extractor_part(again, run)
    stored = again.get_layer("mixed10").kernel.numpy()
    assert abs(stored - after).max() <= abs(after - before).max() / 127 / 2 * 1.01  # differences in 8 bits
    with pytest.raises(ConfigurationError, match="trained from other weights"):
        load_extractor_part(again, run)
    (run / "extractor.npz").write_bytes(b"not an archive")
    with pytest.raises(ConfigurationError, match="damaged"):
        load_extractor_part(again, run)


def test_what_was_trained_of_inception_is_kept_as_differences_in_eight_bits(tmp_path: Path) -> None:
    """By output channel: one changes much, one not at all. A bias is exact, and the order is that of the optimizer."""
    path, random = tmp_path / "extractor.npz", np.random.default_rng(1)
    extractor, again, other = (small_extractor() for _ in range(3))
    kernel, bias = extractor.get_layer("mixed10").weights
    change = random.normal(size=kernel.shape) * [0.01, 0, 0.01, 0.1, 1, 1e-4]
    expected = [bias.numpy() + random.normal(size=bias.shape), kernel.numpy() + change]
    part = ExtractorPart(extractor, [bias, kernel])
    with np.errstate(invalid="raise"):
        part.save(expected, path)
    part.take_over(again, tmp_path)
    found = again.get_layer("mixed10")
    np.testing.assert_allclose(found.bias.numpy(), expected[0], atol=1e-6)
    step = abs(change).max(axis=(0, 1, 2)) / 127
    assert (abs(found.kernel.numpy() - expected[1]) <= 0.501 * step + 1e-6).all()
    with pytest.raises(ConfigurationError, match="from a lower block on"):
        ExtractorPart(other, other.variables[1:]).take_over(other, tmp_path)
    other.variables[0].assign_add(np.full(kernel.shape, 1e-6))
    with pytest.raises(ConfigurationError, match="trained from other weights"):
        load_extractor_part(other, tmp_path)
    for arrays, said in (
        ({"2": np.zeros(6)}, "damaged: variable 2 of 2"),
        ({"1": np.zeros(5)}, r"is \(5,\), not \(6,\)"),
    ):
        np.savez(path, base=0, **arrays)
        with pytest.raises(ConfigurationError, match=said):
            load_extractor_part(extractor, tmp_path)


@pytest.mark.parametrize(
    ("sound", "damaged"),
    [
        (b"(100, 64), }", b"(100, 64x, }"),
        (b"'<f4'", b"',f4'"),
        (b"64), }          ", b"64000000000), }\n"),
        (b"\x05\x00\x14\x000.npy", b"\x05\x20\x14\x000.npy"),
    ],
    ids=["a bracket without its other half", "no type", "more than any memory", "a name of 8 kB, quoted by zipfile"],
)
def test_an_array_whose_header_is_damaged_is_said_in_a_line(tmp_path: Path, sound: bytes, damaged: bytes) -> None:
    """NumPy hands the header to Python's parser, before the archive's checksum can tell of the damage."""
    path = tmp_path / "extractor.npz"
    np.savez(path, base=0, **{"0": np.zeros((100, 64), np.float32)})
    whole = path.read_bytes()
    assert whole.count(sound) == 1
    path.write_bytes(whole.replace(sound, damaged))
    with pytest.raises(ConfigurationError, match=r"extractor\.npz: damaged: [^\n]{1,200}$"):
        load_extractor_part(small_extractor(), tmp_path)


# -- on features by blocks that a run trained --------------------------------------------------------------------------


@pytest.fixture
def tuned(run: Path) -> Path:
    """A run that trained Inception blocks, as far as files tell."""
    (run / "extractor.npz").write_bytes(b"blocks")
    return run


def by_blocks_of(run: Path, stores: Stores) -> Stores:
    """The same features, as if the blocks that a run trained had made them."""
    made = []
    for store in (*stores.train, stores.plain):
        made.append(FeatureStore(store.folder))
        made[-1].source = dataclasses.replace(store.source, extractor=extractor_digest(run))
    return Stores(made[:-1], made[-1])


def test_a_run_goes_on_on_features_by_the_blocks_it_trained(
    tmp_path: Path, tuned: Path, dataset: Dataset, stores: Stores
) -> None:
    """It keeps the blocks, and so do those that go on from it."""
    theirs = by_blocks_of(tuned, stores)
    for name, start in (("on", tuned), ("further", tmp_path / "on")):
        end_epoch(Trainer(tmp_path / name, ONE_EPOCH, dataset, theirs, start_from=start))
        assert (tmp_path / name / "extractor.npz").read_bytes() == b"blocks"
    again = Trainer(tmp_path / "on", ONE_EPOCH, dataset, theirs, start_from=tuned)
    assert again.finished
    taught = with_train(objective="distillation", epochs=1)
    Trainer(tmp_path / "taught", taught, dataset, theirs, start_from=tuned, teacher=tmp_path / "on")


def test_a_run_does_not_go_on_on_features_by_other_blocks(
    tmp_path: Path, trained: Path, tuned: Path, dataset: Dataset, stores: Stores
) -> None:
    theirs, another = by_blocks_of(tuned, stores), shutil.copytree(tuned, tmp_path / "another")
    (another / "extractor.npz").write_bytes(b"other blocks")
    taught, along = with_train(objective="distillation"), with_train(extractor_layer="mixed9")
    for config, seen, start, teacher, said in (
        (ONE_EPOCH, stores, tuned, None, "run: trained Inception blocks of its own, but .*plain was made with others"),
        (ONE_EPOCH, theirs, another, None, "another: trained Inception blocks of its own"),
        (ONE_EPOCH, theirs, trained, None, "trained: trained on Inception as it came, but .*plain was made with"),
        (ONE_EPOCH, theirs, None, None, "plain: made with blocks that a run trained; give that run as --from"),
        (along, theirs, tuned, None, "plain: made with blocks that a run trained, which only `tune`"),
        (taught, theirs, tuned, another, "another: trained Inception blocks of its own"),
        (taught, stores, trained, tuned, "run: trained Inception blocks of its own"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            Trainer(tmp_path / "new", config, dataset, seen, start_from=start, teacher=teacher)
    mixed = Stores(stores.train, theirs.plain)
    with pytest.raises(DataError, match="views stored with different Inception weights"):
        Trainer(tmp_path / "new", ONE_EPOCH, dataset, mixed, start_from=tuned)
    assert not (tmp_path / "new").exists()
    end_epoch(Trainer(tmp_path / "on", ONE_EPOCH, dataset, theirs, start_from=tuned))
    shutil.copy(another / "extractor.npz", tuned)
    with pytest.raises(ConfigurationError, match="another --from"):
        Trainer(tmp_path / "on", ONE_EPOCH, dataset, by_blocks_of(tuned, stores), start_from=tuned)


# -- the self-critical objective --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, stores: Stores) -> Path:
    """A run of some epochs, with something left to learn. Read only."""
    return finish(Trainer(tmp_path_factory.mktemp("runs") / "teacher", with_train(epochs=8), dataset, stores)).folder


def test_self_critical_training_raises_the_reward(
    tmp_path: Path, learned: Path, dataset: Dataset, stores: Stores
) -> None:
    config = with_train(
        objective="self_critical", epochs=12, learning_rate=0.01, label_smoothing=0.0, attention_regularisation=0.0
    )
    second = finish(Trainer(tmp_path / "second", config, dataset, stores, start_from=learned))
    rewards = [-epoch.train_loss for epoch in second.history]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3])


def test_a_self_critical_step_is_traced_once_whatever_people_said(
    tmp_path: Path, dataset: Dataset, stores: Stores
) -> None:
    """Which has another width in every batch."""
    trainer = Trainer(tmp_path / "run", with_train(objective="self_critical"), dataset, stores)
    inputs, tokens, targets, rows = next(iter(trainer._train.epoch(1)))
    for width in (3, 5):
        assert np.isfinite(trainer._step(inputs, tokens[:, :width], targets[:, :width], rows))
    assert trainer._self_critical_update.experimental_get_tracing_count() == 1


def test_a_narrow_captioner_becomes_like_its_teacher(
    tmp_path: Path, learned: Path, dataset: Dataset, stores: Stores
) -> None:
    narrow = dataclasses.replace(
        with_train(objective="distillation", epochs=12),
        model=dataclasses.replace(CONFIG.model, state_size=12, dropout=0.0),
    )
    trainer = finish(Trainer(tmp_path / "narrow", narrow, dataset, stores, teacher=learned))
    losses = [epoch.train_loss for epoch in trainer.history]
    assert losses[-1] < losses[0] / 20
    assert read_stages(trainer.folder)[-1].switches["teacher"] == "teacher"


@pytest.mark.usefixtures("untraced")
def test_distillation_is_measured_by_the_divergence(
    tmp_path: Path, trained: Path, dataset: Dataset, stores: Stores
) -> None:
    """Against the formula written out in numpy, on the teacher's own draws; and nothing is left of it for a copy."""
    config = with_train(objective="distillation", learning_rate=0.0)
    still = dataclasses.replace(config, model=dataclasses.replace(CONFIG.model, dropout=0.0))
    copy = Trainer(tmp_path / "copy", still, dataset, stores, start_from=trained, teacher=trained)
    batch = next(iter(copy._train.epoch(1)))
    assert float(copy._step(*batch)) == pytest.approx(0, abs=1e-6)

    for variable in copy.model.trainable_variables:  # another than its teacher from now on
        variable.assign(keras.random.normal(variable.shape, stddev=0.3, seed=1))
    teacher = load_checkpoint(trained).model
    ids = np.array([[7, 5, END, PAD, PAD], [6, END, PAD, PAD, PAD]] * 10, np.int32)
    features = np.asarray(batch[0])[:4]
    tokens = np.concatenate([np.full((20, 1), START), ids[:, :-1]], axis=1)

    def logits_of(model: CaptionModel) -> np.ndarray:
        return np.asarray(model.teacher_forced(*model.encode(features), tokens, 5)[0])

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        return logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=-1, keepdims=True))

    teachers = logits_of(teacher)
    wanted, found = log_softmax(teachers), log_softmax(logits_of(copy.model))
    divergence = (np.exp(wanted) * (wanted - found)).sum(axis=-1)[ids != PAD].mean()
    assert float(copy._distillation_update(features, ids, teachers)) == pytest.approx(divergence, rel=1e-4)


class Blank(JoinedStores):
    """A view of the photos in which there is nothing to see."""

    def __getitem__(self, name: str) -> np.ndarray:
        return np.zeros_like(super().__getitem__(name))


@pytest.mark.parametrize("view", ["same", "plain"])
def test_what_the_teacher_sees_of_a_photo(
    tmp_path: Path, trained: Path, dataset: Dataset, stores: Stores, view: str
) -> None:
    """The captioner's view, or the photo as it is; told apart by a view of which nothing is left."""
    blank = Blank([stores.plain])
    config = with_train(objective="distillation", teacher_view=view)
    trainer = Trainer(tmp_path / "run", config, dataset, Stores([blank], stores.plain), teacher=trained)
    seen: dict[str, np.ndarray] = {}
    words = np.full((20, 4), END, np.int32), np.zeros((20, 4, len(trainer.vocabulary)), np.float32)
    trainer._sample_teacher = lambda shown: (seen.update(teacher=np.asarray(shown)), words)[1]
    trainer._distillation_update = lambda own, *said: seen.update(captioner=np.asarray(own))
    inputs, tokens, targets, rows = next(iter(trainer._train.epoch(1)))
    trainer._step(inputs, tokens, targets, rows)
    assert not seen["captioner"].any()
    expected = stores.plain.gather([trainer._train.names[row] for row in rows])
    np.testing.assert_array_equal(seen["teacher"], expected if view == "plain" else seen["captioner"])


def test_photos_are_mixed_alike_in_all_views(tmp_path: Path, trained: Path, dataset: Dataset, stores: Stores) -> None:
    """Each is at least half itself, the rest one other photo; with 0.5 about half of them have any."""
    config = with_train(objective="distillation", mixup=0.5)
    trainer = Trainer(tmp_path / "run", config, dataset, stores, teacher=trained)
    photos = np.eye(400, dtype=np.float16)[:, None, :]  # each of a channel of its own
    mixed, twice = (np.asarray(view)[:, 0] for view in trainer._mixup(photos, 2 * photos))
    np.testing.assert_array_equal(twice, 2 * mixed)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-6)
    own = np.diag(mixed)
    assert (own >= 0.5).all() and ((mixed > 0).sum(axis=1) <= 2).all()
    assert 150 < (own < 1).sum() < 250


def test_a_teacher_that_does_not_fit_is_refused(
    tmp_path: Path, trained: Path, dataset: Dataset, stores: Stores
) -> None:
    distillation = with_train(objective="distillation")
    for name, config, run in (("without", distillation, None), ("needless", CONFIG, trained)):
        with pytest.raises(ConfigurationError, match="distillation needs --teacher"):
            Trainer(tmp_path / name, config, dataset, stores, teacher=run)
    earlier = dataclasses.replace(distillation, model=dataclasses.replace(CONFIG.model, feature_block="mixed9"))
    with pytest.raises(ConfigurationError, match=r"reads mixed10, .* mixed9"):
        Trainer(tmp_path / "earlier", earlier, dataset, stores, teacher=trained)
    rare = dataclasses.replace(distillation, text=TextConfig(minimum_count=20, max_length=9))
    with pytest.raises(ConfigurationError, match="its vocabulary is not that of"):
        Trainer(tmp_path / "rare", rare, dataset, stores, teacher=trained)


def test_rewards_count_the_end_token(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    trainer = Trainer(tmp_path, with_train(objective="self_critical"), dataset, stores)
    name = dataset.split("train")[0]
    words = trainer.vocabulary.encode(tokenize(dataset.captions[name][1]))
    ids = np.array([[*words, END, PAD], [*words, PAD, PAD]], np.int32)
    ended, cut = trainer._rewards(np.array([trainer._train.names.index(name)]), ids)
    assert ended > cut > 0


def test_rewards_add_rouge_by_its_weight(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    plain = Trainer(tmp_path / "plain", with_train(objective="self_critical"), dataset, stores)
    mixed = Trainer(tmp_path / "mixed", with_train(objective="self_critical", reward_rouge=2.0), dataset, stores)
    name = dataset.split("train")[0]
    words = tokenize(dataset.captions[name][1])[:-1]
    ids = np.array([[*plain.vocabulary.encode(words), END]], np.int32)
    rows = np.array([plain._train.names.index(name)])
    references = {name: [tokenize(caption) for caption in dataset.captions[name]]}
    rouge = corpus_scores({name: words}, references).rouge_l / 100
    assert 0 < rouge < 1
    np.testing.assert_allclose(mixed._rewards(rows, ids) - plain._rewards(rows, ids), 2 * rouge, rtol=1e-5)


def test_rewards_lose_the_penalty_for_every_pair_that_nobody_says(
    tmp_path: Path, dataset: Dataset, stores: Stores
) -> None:
    plain, strict = (
        Trainer(tmp_path / f"{penalty}", with_train(objective="self_critical", bigram_penalty=penalty), dataset, stores)
        for penalty in (0.0, 0.7)
    )
    name = dataset.split("train")[0]
    said = "a red square on a white wall"
    captions = [said, f"a {said}", f"a a a {said}", said[: -len(" white wall")]]
    ids = np.full((len(captions), 12), PAD, np.int32)
    for row, caption in zip(ids, captions, strict=True):
        words = [*strict.vocabulary.encode(caption.split()), END]
        row[: len(words)] = words
    cut = ids[-1:] * (ids[-1:] != END)
    rows = np.array([plain._train.names.index(name)])
    difference = plain._rewards(rows, np.concatenate([ids, cut])) - strict._rewards(rows, np.concatenate([ids, cut]))
    # "a a" once, three times, "a <end>" once; a caption that was cut off after "a" may yet go on.
    np.testing.assert_allclose(difference, 0.7 * np.array([0, 1, 3, 1, 0]), rtol=1e-5, atol=1e-6)


def test_a_run_tells_the_stages_before_it(tmp_path: Path, trained: Path, dataset: Dataset, stores: Stores) -> None:
    config = with_train(seed=9, epochs=2)
    second = Trainer(tmp_path / "second", config, dataset, stores, start_from=trained)
    assert second.start == read_stages(trained)[-1]
    for dev_cider in (30.0, 20.0):
        end_epoch(second, dev_cider)
    stages = read_stages(second.folder)
    assert [(stage.run, stage.epochs, stage.member) for stage in stages] == [("trained", 1, 1), ("second", 2, 1)]
    assert stages[1].switches["train.seed"] == 9
    assert stages[1].dev_cider == 20.0


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Stores:
    """Features of the block before."""
    return tiny_stores(tmp_path_factory.mktemp("stores") / "mixed9-plain", dataset, seed=5)


@pytest.fixture(scope="module")
def trained_on_earlier(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, earlier: Stores) -> Path:
    """A run of them, of random weights. Read only."""
    config = dataclasses.replace(ONE_EPOCH, model=dataclasses.replace(CONFIG.model, feature_block="mixed9"))
    assert config.stored_blocks == ("mixed9",) and not config.trains_extractor
    trainer = Trainer(tmp_path_factory.mktemp("runs") / "mixed9", config, dataset, earlier)
    end_epoch(trainer)
    return trainer.folder


def test_a_captioner_of_an_earlier_block_keeps_to_it(
    tmp_path: Path, trained_on_earlier: Path, dataset: Dataset, stores: Stores
) -> None:
    with pytest.raises(ConfigurationError, match=r"another configuration: model\.feature_block=mixed9$"):
        Trainer(tmp_path / "other", CONFIG, dataset, stores, start_from=trained_on_earlier)
    assert load_checkpoint(trained_on_earlier).config.model.feature_block == "mixed9"


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("objective", ["cross_entropy", "self_critical"])
def test_captioners_of_two_blocks_are_trained_on_as_one(
    tmp_path: Path,
    trained: Path,
    trained_on_earlier: Path,
    dataset: Dataset,
    stores: Stores,
    earlier: Stores,
    objective: str,
) -> None:
    (tmp_path / "joined").mkdir()
    join_runs([trained, trained_on_earlier], tmp_path / "joined")
    both = JoinedStores([stores.plain, earlier.plain])
    model = dataclasses.replace(CONFIG.model, members=2, feature_block="mixed10 mixed9")
    config = dataclasses.replace(with_train(objective=objective, epochs=1), model=model)
    assert config.stored_blocks == ("mixed10", "mixed9")
    trainer = Trainer(tmp_path / "as-one", config, dataset, Stores([both], both), start_from=tmp_path / "joined")
    assert trainer.start is None  # what is recorded last is of one of them
    before = [np.array(variable) for variable in trainer.model.trainable_variables]
    finish(trainer)
    # Every weight of both captioners was moved, and what was written is what was trained.
    assert all((np.array(now) != old).any() for now, old in zip(trainer.model.trainable_variables, before, strict=True))
    written = load_checkpoint(trainer.folder).model.trainable_variables
    for now, variable in zip(trainer.model.trainable_variables, written, strict=True):
        np.testing.assert_array_equal(now, variable)
    stages = read_stages(trainer.folder)
    assert [(stage.run, stage.member) for stage in stages] == [("trained", 1), ("mixed9", 2), ("as-one", ALL)]
    # The mean of two such runs is one again, and a file of half the size.
    (tmp_path / "mean").mkdir()
    average_runs([tmp_path / "joined", trainer.folder], tmp_path / "mean")
    halves = load_checkpoint(tmp_path / "mean").model.trainable_variables
    for half, variable, old in zip(halves, written, before, strict=True):
        np.testing.assert_allclose(half, (np.array(variable) + old) / 2, rtol=2e-3, atol=1e-4)
    assert read_stages(tmp_path / "mean")[-1].member == ALL


def test_an_ensemble_is_not_trained_from_nothing(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    ensemble = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, members=2))
    with pytest.raises(ConfigurationError, match="join"):
        Trainer(tmp_path, ensemble, dataset, stores)
    along = dataclasses.replace(ensemble, train=dataclasses.replace(ensemble.train, extractor_layer="mixed7"))
    with pytest.raises(ConfigurationError, match="only `tune` trains Inception"):
        Trainer(tmp_path, along, dataset, stores, start_from=tmp_path)


def test_sampling_draws_from_the_models_distribution(tmp_path: Path, dataset: Dataset, stores: Stores) -> None:
    """First words drawn 4,000 times, against the softmax of the first step's logits."""
    trainer = Trainer(tmp_path, CONFIG, dataset, stores)
    features = stores.plain.gather(dataset.split("dev")[:1])
    drawn = sample(trainer.model, features, 1, 4000, seed=np.array([4, 0]))[0].numpy()[:, 0]
    encoded, keys, state = trainer.model.encode(features)
    logits = trainer.model.step(np.array([START]), state, encoded, keys)[0].numpy()[0].astype(np.float64)
    logits[[PAD, START, UNKNOWN]] = -np.inf
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    counts = np.bincount(drawn, minlength=len(expected)) / 4000
    assert not counts[[PAD, START, UNKNOWN]].any()
    np.testing.assert_allclose(counts, expected, atol=4 * np.sqrt(0.25 / 4000))


def test_samples_end_as_captions_do_and_have_the_logits_of_reading_them() -> None:
    """After four words at most; of three photos, which teacher forcing tells apart."""
    model = build_tiny_model(spread=0.4)
    features = np.random.default_rng(0).normal(size=(3, 64, 32)).astype(np.float32)
    ids, logits = (np.asarray(part) for part in sample(model, features, 4, 50, np.array([3, 1])))
    ended = np.cumsum(ids == END, axis=1) - (ids == END) > 0
    assert ids.shape == (150, 5) and set(ids[:, 4]) == {END, PAD}  # there is no fifth word
    assert not np.isin(ids, [START, UNKNOWN]).any()
    np.testing.assert_array_equal(ids[:, :4] == PAD, ended[:, :4])
    tokens = np.concatenate([np.full((150, 1), START), ids[:, :-1]], axis=1)
    expected = np.asarray(model.teacher_forced(*model.encode(features), tokens, 50)[0])
    np.testing.assert_allclose(logits[ids != PAD], expected[ids != PAD], atol=1e-4)
    vocabulary = Vocabulary([*SPECIALS, *(f"word{number}" for number in range(20))])
    cut = ids[ids[:, 3] > END][:1, [0, 1, 2, 3, 3]]
    assert vocabulary.decode(cut[0].tolist(), 4) == [vocabulary.words[word] for word in cut[0, :4]]


def test_greedy_captions_are_those_of_steps_written_out() -> None:
    """Of photos whose captions end early, late or not at all, by a model that would rather say what is never said."""
    model, most = build_tiny_model(spread=0.4), 4
    model.output_bias.assign_add(np.eye(24)[[PAD, START, UNKNOWN]].sum(axis=0) * 9)
    features = np.random.default_rng(0).normal(size=(40, 64, 32)).astype(np.float32)
    expected = np.full((len(features), most + 1), PAD)
    encoded, keys, state = model.encode(features)
    tokens = np.full(len(features), START)
    for step in range(most + 1):
        logits, state, _ = model.step(tokens, state, encoded, keys)
        for photo, scores in enumerate(np.asarray(logits)):
            tokens[photo] = max(set(range(24)) - {PAD, START, UNKNOWN}, key=scores.__getitem__)
            if END not in expected[photo]:
                expected[photo, step] = tokens[photo]
    assert {1, most + 1} <= set((expected != PAD).sum(axis=1).tolist()) and not (expected == END).any(axis=1).all()
    np.testing.assert_array_equal(FreeRunner(model, most).greedy(features), expected)


def test_samples_of_a_model_that_knows_nothing_are_independent_words() -> None:
    model = build_tiny_model()
    for variable in model.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    ids = np.asarray(sample(model, np.zeros((1, 64, 32), np.float32), 9, 200, np.array([3, 1]))[0])
    following = (ids[:, :-1] > END) & (ids[:, 1:] > END)
    assert (ids[:, 1:] == ids[:, :-1])[following].mean() == pytest.approx(1 / 20, abs=0.03)
    model.output_bias.assign(50.0 * (np.arange(24) == END))
    assert (
        np.asarray(sample(model, np.zeros((1, 64, 32), np.float32), 9, 2, np.array([3, 1]))[0]).tolist() == [[END]] * 2
    )
    assert FreeRunner(model, 2).greedy(np.zeros((1, 64, 32), np.float32)).tolist() == [[END]]


def test_dropout_while_sampling_is_that_of_photos_and_of_words() -> None:
    """That of channels a photo's captions share; that of words each has its own of."""
    features = np.random.default_rng(0).normal(size=(1, 64, 32)).astype(np.float32)
    first = {}
    for switch in ("channel_dropout", "dropout"):
        model = build_tiny_model(dataclasses.replace(TINY, **{"dropout": 0.0, switch: 0.5}))
        for training in (False, True):
            _, logits = sample(model, features, 1, 2, np.array([3, 1]), training)
            first[switch, training] = np.asarray(logits)[:, 0]
    for switch, own in (("channel_dropout", False), ("dropout", True)):
        assert abs(first[switch, True] - first[switch, False]).max() > 0.01
        assert (abs(np.diff(first[switch, True], axis=0)).max() > 0.01) == own


def test_a_run_may_be_replaced(run: Path) -> None:
    """By verbs that make a run of another, and no others: nothing that training writes is taken for somebody's own."""
    for name in ("curves.png", "extractor.npz"):
        (run / name).touch()
    assert check_folder(run, RUN) == run
    with pytest.raises(ExportError, match="does not write there"):
        check_folder(run, GRAPHS)
