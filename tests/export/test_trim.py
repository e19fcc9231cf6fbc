"""A trimmed captioner: what it may still say it says as before, and the words it keeps are those it would say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from caplet_export import trim
from caplet_export.checkpoint import load_checkpoint
from caplet_export.cli import main
from caplet_export.config import ModelConfig
from caplet_export.ensemble import join_runs
from caplet_export.extractor_part import extractor_digest
from caplet_export.features import open_store
from caplet_export.flickr8k import Dataset, read_dataset
from caplet_export.freerun import FreeRunner
from caplet_export.stages import ALL, Stage, read_stages, write_stages
from caplet_export.text import END, PAD, SPECIALS, START, UNKNOWN
from caplet_export.trim import proposed_words, trim_run
from test_ensemble import write_run
from test_train import CHANNELS, LOCATIONS, tiny_stores
from tiny_encoder import CONFIG
from tiny_flickr8k import write_split, write_tiny_flickr8k

KEPT = [4, 7, 8, 15, 21]
SMALL = dataclasses.replace(CONFIG, locations=LOCATIONS, channels=CHANNELS)


def first_step(folder: Path, photos: np.ndarray, token: int) -> np.ndarray:
    model = load_checkpoint(folder).model
    features, keys, state = model.encode(photos)
    return np.asarray(model.step(np.full(len(photos), token), state, features, keys)[0])


@pytest.mark.parametrize(
    "model",
    [CONFIG, dataclasses.replace(CONFIG, tied_embeddings=False), dataclasses.replace(CONFIG, deep_output=False)],
    ids=["tied", "untied", "shallow"],
)
def test_what_is_left_has_the_logits_it_had(tmp_path: Path, model: ModelConfig) -> None:
    run, trimmed = write_run(tmp_path / "run", 1, model), tmp_path / "trimmed"
    trimmed.mkdir()
    vocabulary = trim_run(load_checkpoint(run), [*reversed(KEPT), *KEPT], "tried out", trimmed)
    words = load_checkpoint(run).vocabulary.words
    assert vocabulary.words == [*SPECIALS, *(words[number] for number in KEPT)]
    photos = np.random.default_rng(0).normal(size=(2, CONFIG.locations, CONFIG.channels)).astype(np.float32)
    after = first_step(trimmed, photos, vocabulary.encode([words[15]])[0])
    np.testing.assert_allclose(after, first_step(run, photos, 15)[:, [*range(len(SPECIALS)), *KEPT]], atol=1e-4)
    assert "9 words, tried out" in read_stages(trimmed)[-1].run and read_stages(trimmed)[-1].member == 1


def test_captioners_that_speak_as_one_are_trimmed_as_one(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(seed), seed) for seed in (1, 2)]
    joined, trimmed = tmp_path / "joined", tmp_path / "trimmed"
    joined.mkdir()
    trimmed.mkdir()
    join_runs(runs, joined)
    trim_run(load_checkpoint(joined), KEPT, "tried out", trimmed)
    photos = np.random.default_rng(0).normal(size=(2, CONFIG.locations, CONFIG.channels)).astype(np.float32)
    before = first_step(joined, photos, START)[:, [*range(len(SPECIALS)), *KEPT]]
    np.testing.assert_allclose(first_step(trimmed, photos, START), before, atol=1e-4)
    assert read_stages(trimmed)[-1].member == ALL
    # No more precise on disk than it was.
    assert (trimmed / "decoder.weights.h5").stat().st_size < (joined / "decoder.weights.h5").stat().st_size


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = read_dataset(write_tiny_flickr8k(tmp_path / "data"))
    tiny_stores(tmp_path / "features" / "mixed10-plain", dataset)
    return dataset


def test_the_words_are_those_that_the_decoder_would_say(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against greedy search written out, one photo and one step at a time."""
    checkpoint = load_checkpoint(write_run(tmp_path / "run", 1, SMALL, max_length=3))
    store, names = open_store(tmp_path / "features", ["mixed10"], "plain"), dataset.split("train")
    expected: set[int] = set()
    for name in names:
        features, keys, state = checkpoint.model.encode(store[name][None].astype(np.float32))
        token = START
        for _ in range(checkpoint.config.text.max_length + 1):
            logits, state, _ = checkpoint.model.step(np.array([token]), state, features, keys)
            order = [word for word in np.argsort(-np.asarray(logits)[0]) if word not in (PAD, START, UNKNOWN)]
            expected.update(map(int, order[:3]))
            token = int(order[0])
            if token == END:
                break
    monkeypatch.setattr(trim, "_BATCH", 5)
    assert proposed_words(checkpoint, store, names, 3) - {PAD} == expected
    assert len(expected) < len(checkpoint.vocabulary) - 4, "or there would be nothing to trim"


def test_the_command_changes_no_caption_of_the_photos_it_goes_by(
    tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run, trimmed = write_run(tmp_path / "run", 1, SMALL), tmp_path / "trimmed"
    options = ["--data", str(tmp_path / "data"), "--features", str(tmp_path / "features")]
    assert main(["trim", str(run), *options, "--likeliest", "1", "-o", str(trimmed)]) == 0
    before, after = load_checkpoint(run), load_checkpoint(trimmed)
    assert f"{len(after.vocabulary)} of {len(before.vocabulary)} words" in capsys.readouterr().out
    assert len(after.vocabulary) < len(before.vocabulary)
    store = open_store(tmp_path / "features", ["mixed10"], "plain")
    features = store.gather(dataset.split("train"))
    said = [
        [checkpoint.vocabulary.decode(row) for row in FreeRunner(checkpoint.model, 9).greedy(features)]
        for checkpoint in (before, after)
    ]
    assert said[0] == said[1]
    # The same again by the list of its words, without data.
    again = tmp_path / "again"
    assert main(["trim", str(run), "--words", str(trimmed / "vocabulary.txt"), "-o", str(again)]) == 0
    # But not in the place of what it is made of.
    for folder in (run, trimmed):
        assert main(["trim", str(run), "--words", str(trimmed / "vocabulary.txt"), "-o", str(folder)]) == 1
        assert f"{folder}: would replace what is read" in capsys.readouterr().err
    assert load_checkpoint(again).vocabulary.words == after.vocabulary.words
    trained = (load_checkpoint(folder).model.trainable_variables for folder in (trimmed, again))
    for one, other in zip(*trained, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("options", "likeliest"), [(["--likeliest", "1"], 1), ([], 5), (["--likeliest", "99"], 24)])
def test_the_command_keeps_as_many_of_the_likeliest_as_it_is_told(
    tmp_path: Path, dataset: Dataset, options: list[str], likeliest: int
) -> None:
    run, trimmed = write_run(tmp_path / "run", 1, SMALL), tmp_path / "trimmed"
    data = ["--data", str(tmp_path / "data"), "--features", str(tmp_path / "features")]
    assert main(["trim", str(run), *data, *options, "-o", str(trimmed)]) == 0
    checkpoint, store = load_checkpoint(run), open_store(tmp_path / "features", ["mixed10"], "plain")
    proposed = proposed_words(checkpoint, store, dataset.split("train"), likeliest)
    kept = {checkpoint.vocabulary.words[word] for word in proposed}
    assert set(load_checkpoint(trimmed).vocabulary.words) == kept | set(SPECIALS)


SIZE = {"prune": ["--state-size", "1"]}


@pytest.mark.parametrize("verb", ["trim", "prune", "ablation"])
def test_features_of_other_inception_weights_are_refused(
    tmp_path: Path, dataset: Dataset, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", 1, SMALL)
    write_stages(run, [Stage("x", 1, 1, 1, 50.0, 1.0, {}, encoder_weights="others")])
    options = ["--data", str(tmp_path / "data"), "--features", str(tmp_path / "features")]
    assert main([verb, str(run), *options, *SIZE.get(verb, []), "-o", str(tmp_path / "new")]) == 1
    expected = f"{run}: trained on other Inception weights than those of {tmp_path / 'features' / 'mixed10-plain'}\n"
    assert capsys.readouterr().err == f"caplet-export {verb}: {expected}"


@pytest.mark.parametrize("verb", ["trim", "prune"])
def test_without_a_readable_training_photo_there_is_nothing_to_go_by(
    tmp_path: Path, dataset: Dataset, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", 1, SMALL)
    write_split(tmp_path / "data", "train", [])
    options = ["--data", str(tmp_path / "data"), "--features", str(tmp_path / "features")]
    assert main([verb, str(run), *options, *SIZE.get(verb, []), "-o", str(tmp_path / "made")]) == 1
    assert f"no training photo that could be read; {verb} needs at least one" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--features", "features"], "give --data and --features, or --words"),
        (["--words", "words.txt", "--likeliest", "5"], "which words? give --words, or --data"),
        (["--words", "words.txt", "--data", "gone"], "which words? give --words, or --data"),
        (["--words", "words.txt", "--features", "gone"], "which words? give --words, or --data"),
        (["--words", "words.txt"], "'unheard' is not a word of"),
        (["--words", "specials.txt"], "run: no word would be left that can be said; "),
        (["--words", "gone.txt"], "No such file"),
    ],
)
def test_what_cannot_be_kept_is_said(
    tmp_path: Path, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", 1)
    Path("words.txt").write_text("\n".join([*SPECIALS, "word3", "unheard", ""]))
    Path("specials.txt").write_text("\n".join([*SPECIALS, ""]))
    assert main(["trim", "run", *options, "-o", "trimmed"]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not Path("trimmed").exists()


@pytest.mark.parametrize("verb", ["trim", "prune"])
def test_blocks_of_inception_that_a_run_trained_are_kept(
    tmp_path: Path, dataset: Dataset, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And decisions are made on what they give, not on other features."""
    run = write_run(tmp_path / "run", 1, SMALL)
    (run / "extractor.npz").write_bytes(b"blocks")
    options = ["--data", str(tmp_path / "data"), "--features", str(tmp_path / "features")]
    command = [verb, str(run), *options, *SIZE.get(verb, [])]
    assert main([*command, "-o", str(tmp_path / "new")]) == 1
    assert f"{run}: trained Inception blocks of its own" in capsys.readouterr().err
    source = tmp_path / "features" / "mixed10-plain" / "store.json"
    source.write_text(json.dumps({**json.loads(source.read_text()), "extractor": extractor_digest(run)}))
    assert main([*command, "-o", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "extractor.npz").read_bytes() == b"blocks"
    (run / "extractor.npz").unlink()
    assert main([*command, "-o", str(tmp_path / "other")]) == 1
    assert f"{run}: trained on Inception as it came" in capsys.readouterr().err
