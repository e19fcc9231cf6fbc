"""A pruned captioner: units that nothing reads go first, and go unnoticed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from caplet_export import prune
from caplet_export.checkpoint import load_checkpoint, save_weights
from caplet_export.cli import main
from caplet_export.config import ModelConfig
from caplet_export.ensemble import join_runs
from caplet_export.features import StoredFeatures, open_store
from caplet_export.flickr8k import Dataset, read_dataset
from caplet_export.model import members_of
from caplet_export.prune import SIZES, prune_run, unit_importances
from caplet_export.stages import ALL, read_stages
from caplet_export.text import END
from test_ensemble import write_run
from test_train import CHANNELS, LOCATIONS, tiny_stores
from tiny_encoder import CONFIG
from tiny_flickr8k import write_tiny_flickr8k

TINY = dataclasses.replace(CONFIG, locations=LOCATIONS, channels=CHANNELS)
DEAD = {"state_size": [0, 3, 13], "feature_size": [1, 2, 11], "attention_size": [0, 4]}
OTHERS = {"state_size": [1, 5, 12], "feature_size": [0, 6, 7], "attention_size": [2, 3]}
READERS = {
    "state_size": ["from_state", "output_state"],
    "feature_size": ["project_keys", "initial_state", "from_context", "output_context"],
    "attention_size": ["score"],
}
MODELS = {
    "tied": TINY,
    "untied": dataclasses.replace(TINY, tied_embeddings=False),
    "no-gate": dataclasses.replace(TINY, gated_context=False),
    "zero-state": dataclasses.replace(TINY, initial_state="zero"),
}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = read_dataset(write_tiny_flickr8k(tmp_path / "data"))
    tiny_stores(tmp_path / "features" / "mixed10-plain", dataset)
    return dataset


@pytest.fixture
def store(tmp_path: Path, dataset: Dataset) -> StoredFeatures:
    return open_store(tmp_path / "features", ["mixed10"], "plain")


def run_with_dead_units(folder: Path, seed: int, config: ModelConfig, dead: dict[str, list[int]] = DEAD) -> Path:
    """A captioner of random weights in which nothing reads some of the units."""
    run = write_run(folder, seed, config)
    model = load_checkpoint(run).model
    for size, layers in READERS.items():
        for name in layers:
            layer = getattr(model, name)
            if layer is not None:
                kernel = np.array(layer.kernel)
                kernel[dead[size]] = 0
                layer.kernel.assign(kernel)
    save_weights(model, run / "decoder.weights.h5")
    return run


def two_steps(folder: Path, photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    model = load_checkpoint(folder).model
    features, keys, state = model.encode(photos)
    _, state, _ = model.step(np.full(len(photos), 1), state, features, keys)
    second, *_, attention = model.step(np.full(len(photos), 7), state, features, keys)
    return np.asarray(second), np.asarray(attention)


def smaller(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, **{size: getattr(config, size) - len(dead) for size, dead in DEAD.items()})


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_what_nothing_reads_goes_first_and_unnoticed(
    tmp_path: Path, config: ModelConfig, store: StoredFeatures
) -> None:
    run = run_with_dead_units(tmp_path / "run", 1, config)
    names = list(store.names)
    [importance] = unit_importances(load_checkpoint(run), store, names, seed=1)
    for size, dead in DEAD.items():
        assert np.flatnonzero(importance[size] == 0).tolist() == dead
    pruned = tmp_path / "pruned"
    pruned.mkdir()
    prune_run(load_checkpoint(run), [importance], smaller(config), pruned)
    photos = store.gather(names).astype(np.float32)
    for after, before in zip(two_steps(pruned, photos), two_steps(run, photos), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-4)
    assert load_checkpoint(pruned).vocabulary.words == load_checkpoint(run).vocabulary.words
    stage = read_stages(pruned)[-1]
    assert "pruned to state_size 11, feature_size 9, attention_size 4" in stage.run and stage.member == 1


def test_importance_is_what_the_likelihood_loses_to_first_order(tmp_path: Path, store: StoredFeatures) -> None:
    """Against the expectation written out: all first words of one photo, each with its probability, and the change of
    its logarithm when all that reads a unit is taken away by a little.
    """
    run = write_run(tmp_path / "run", 1, TINY)
    config = load_checkpoint(run).config
    dataclasses.replace(config, text=dataclasses.replace(config.text, max_length=1)).save(run / "config.json")
    name = store.names[0]
    model = load_checkpoint(run).model
    # No end: after the first word nothing else may be said.
    bias = np.array(model.output_bias)
    bias[END] = -50
    model.output_bias.assign(bias)
    save_weights(model, run / "decoder.weights.h5")
    [summed] = unit_importances(load_checkpoint(run), store, [name] * 1440, seed=1)
    found = {size: summed[size] / 1440 for size in SIZES}

    [one], [other] = (unit_importances(load_checkpoint(run), store, [name] * 24, seed) for seed in (1, 2))
    assert (other["attention_size"] != one["attention_size"]).any()
    dataclasses.replace(config, text=dataclasses.replace(config.text, max_length=2)).save(run / "config.json")
    [longer] = unit_importances(load_checkpoint(run), store, [name] * 24, seed=1)
    assert (longer["attention_size"] != one["attention_size"]).any()

    photo, little = store[name][None].astype(np.float32), 1e-3

    def log_probs() -> np.ndarray:
        encoded, keys, state = model.encode(photo)
        logits, *_ = model.step(np.array([1]), state, encoded, keys)
        kept = np.asarray(logits, np.float64)[0]
        kept[[0, 1, 3]] = -np.inf
        return kept - np.log(np.exp(kept - kept.max()).sum()) - kept.max()

    before = log_probs()
    probabilities = np.exp(before)
    for size, layers in READERS.items():
        kernels = [getattr(model, name).kernel for name in layers]
        weights = [np.array(kernel) for kernel in kernels]
        expected = []
        for unit in range(getattr(TINY, size)):
            for kernel, whole in zip(kernels, weights, strict=True):
                kernel.assign(whole * (1 + little * (np.arange(len(whole)) == unit)[:, None]))
            with np.errstate(invalid="ignore"):
                effect = np.where(probabilities > 0, (log_probs() - before) / little, 0)
            expected.append(5 * float((probabilities * effect**2).sum()))
        for kernel, whole in zip(kernels, weights, strict=True):
            kernel.assign(whole)
        np.testing.assert_allclose(found[size], expected, rtol=0.2, atol=1e-3, err_msg=size)


def test_captioners_that_speak_as_one_are_pruned_each_by_its_own(tmp_path: Path, store: StoredFeatures) -> None:
    runs = [run_with_dead_units(tmp_path / str(seed), seed, TINY, dead) for seed, dead in ((1, DEAD), (2, OTHERS))]
    joined, pruned = tmp_path / "joined", tmp_path / "pruned"
    for folder in (joined, pruned):
        folder.mkdir()
    join_runs(runs, joined)
    whole = load_checkpoint(joined)
    names = list(store.names)
    prune_run(whole, unit_importances(whole, store, names, seed=1), smaller(whole.config.model), pruned)
    photos = store.gather(names).astype(np.float32)
    for after, before in zip(two_steps(pruned, photos), two_steps(joined, photos), strict=True):
        np.testing.assert_allclose(after, before, atol=2e-2)
    assert all(member.config.state_size == 11 for member in members_of(load_checkpoint(pruned).model))
    assert read_stages(pruned)[-1].member == ALL


def test_the_command_prunes_what_it_is_told(
    tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run, pruned = run_with_dead_units(tmp_path / "run", 1, TINY), tmp_path / "pruned"
    data = ["--data", str(tmp_path / "data"), "--features", str(tmp_path / "features")]
    assert main(["prune", str(run), *data, "--state-size", "8", "-o", str(pruned)]) == 0
    assert "state_size 14 -> 8, feature_size 12 -> 12" in capsys.readouterr().out
    model = load_checkpoint(pruned).config.model
    assert (model.state_size, model.feature_size, model.attention_size) == (8, 12, 6)
    assert read_stages(pruned)[-1].run.startswith("pruned to state_size 8")  # docs/training.md has it trained on


def test_the_command_goes_by_all_training_photos(
    tmp_path: Path, dataset: Dataset, store: StoredFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "_BATCH", 5)
    given: list[prune.Units] = []
    monkeypatch.setattr(prune, "prune_run", lambda _, importances, *others: given.extend(importances))
    run = write_run(tmp_path / "run", 1, TINY)
    data = ["--data", str(tmp_path / "data"), "--features", str(tmp_path / "features")]
    assert main(["prune", str(run), *data, "--state-size", "8", "--seed", "3", "-o", str(tmp_path / "pruned")]) == 0
    [expected], [found] = unit_importances(load_checkpoint(run), store, dataset.split("train"), seed=3), given
    for size in SIZES:
        np.testing.assert_allclose(found[size], expected[size], rtol=1e-4)


def test_more_units_than_there_are_cannot_be_kept(
    tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", 1, TINY)
    data = ["--data", str(tmp_path / "data"), "--features", str(tmp_path / "features")]
    assert main(["prune", str(run), *data, "--state-size", "15", "-o", str(tmp_path / "pruned")]) == 1
    assert f"--state-size 15: {run} has only 14" in capsys.readouterr().err
    # As many are a copy, and no size was given that says how much smaller.
    for sizes in ([], ["--state-size", "14"]):
        assert main(["prune", str(run), *data, *sizes, "-o", str(tmp_path / "pruned")]) == 1
        smaller = "all units would be kept; give a smaller --state-size, --feature-size or --attention-size"
        assert capsys.readouterr().err == f"caplet-export prune: {run}: {smaller}\n"
    assert not (tmp_path / "pruned").exists()
    # And not in the place of what it is made of.
    assert main(["prune", str(run), *data, "--state-size", "8", "-o", str(run)]) == 1
    assert f"{run}: would replace what is read" in capsys.readouterr().err


def test_what_cannot_be_pruned_is_said_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shallow = write_run(tmp_path / "shallow", 1, dataclasses.replace(TINY, deep_output=False))
    assert main(["prune", str(shallow), "--data", "gone", "--features", "gone", "-o", str(tmp_path / "new")]) == 1
    assert "no deep output" in capsys.readouterr().err
