"""Runs side by side: scores as the trainer measured them, and what differs between the runs."""

from __future__ import annotations

import dataclasses
import json
import logging.handlers
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from caplet.image import load_pixels
from caplet_export import ablation
from caplet_export.ablation import COLUMNS, compare_runs
from caplet_export.backend import load_tensorflow
from caplet_export.bundle import read_ablation
from caplet_export.card import markdown_table
from caplet_export.charts import measured
from caplet_export.cli import main
from caplet_export.config import load_config
from caplet_export.errors import ConfigurationError, DataError
from caplet_export.extractor_part import extractor_digest
from caplet_export.features import open_store
from caplet_export.flickr8k import Dataset, read_dataset
from caplet_export.metrics import Interval
from test_train import CONFIG, Trainer, tiny_stores
from tiny_flickr8k import write_tiny_flickr8k

RATES = {"slow": 0.001, "middling": 0.01, "fast": 0.03}


@dataclasses.dataclass(frozen=True)
class Runs:
    """One run after more and more epochs, as if of other learning rates, and the dev score that it measured of each:
    to train three would be to trace three.
    """

    folder: Path
    dataset: Dataset
    kept: dict[str, float]

    def rows(self, **options: str) -> dict[str, dict[str, str]]:
        """The table's rows by the names of their runs."""
        table = compare_runs([self.folder / name for name in RATES], self.dataset, self.folder / "features", **options)
        titles = {"before": "What each stage gave", "first": "What each switch gives alone"}
        assert (table["title"], table["columns"]) == (titles[options.get("against", "before")], list(COLUMNS))
        return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in table["rows"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("ablation")
    dataset = read_dataset(write_tiny_flickr8k(folder / "data", dev=8))
    stores = tiny_stores(folder / "features" / "mixed10-plain", dataset)
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, learning_rate=0.03, epochs=15))
    trainer, kept = Trainer(folder / "run", config, dataset, stores), {}
    for (name, rate), epochs in zip(RATES.items(), (7, 10, 15), strict=True):
        while len(trainer.history) < epochs:
            trainer.run_epoch()
        kept[name] = trainer.history[-1].dev_cider
        shutil.copytree(trainer.folder, folder / name)
        train = dataclasses.replace(config.train, learning_rate=rate)
        dataclasses.replace(trainer.config, train=train).save(folder / name / "config.json")
    return Runs(folder, dataset, kept)


def test_a_row_a_run_with_the_dev_score_of_its_training(runs: Runs) -> None:
    rows = runs.rows()
    for name, kept in runs.kept.items():
        assert float(rows[name]["CIDEr-D"].split()[0]) == pytest.approx(kept, abs=0.06)
    assert rows["slow"]["difference"] == ""
    assert rows["fast"]["switches changed"] == "learning_rate 0.03"


def test_figures_stand_in_their_columns(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = shutil.copytree(runs.folder / "slow", tmp_path / "again")
    config = load_config(again / "config.json")
    changed = {"seed": 9, "precision": "bfloat16", "learning_rate": 0.02}
    dataclasses.replace(config, train=dataclasses.replace(config.train, **changed)).save(again / "config.json")
    known = {"cider_d": 55.5, "bleu_4": 20.0, "rouge_l": 46.0, "mean_length": 7.0, "repeated_trigram_share": 3.0}
    odd = {"dev": iter([None, 5.5])}
    monkeypatch.setattr(ablation, "bigrams_of", lambda dataset, apart_from: odd[apart_from])
    monkeypatch.setattr(
        ablation,
        "corpus_scores",
        lambda captions, references, bigrams, _: SimpleNamespace(**known, implausible_bigram_share=next(bigrams)),
    )
    monkeypatch.setattr(ablation, "bootstrap_interval", lambda _: {"cider_d": Interval(55.5, 52.1, 58.9)})
    monkeypatch.setattr(ablation, "paired_bootstrap", lambda *_: {"cider_d": Interval(1.0, -2.0, 3.0)})
    table = compare_runs([runs.folder / "slow", again], runs.dataset, runs.folder / "features")
    rows = table["rows"]
    assert dict(zip(table["columns"], rows[0], strict=True))["length"] == "7.0"  # as `evaluate` calls it
    figures = ["20.0", "46.0", "7.0", "3.0"]
    assert rows == [
        ["slow", "55.5 (52.1 to 58.9)", "", *figures, "", "(the baseline)"],
        ["again", "55.5 (52.1 to 58.9)", "+1.0 (-2.0 to +3.0)", *figures, "5.5", "learning_rate 0.02"],
    ]
    monkeypatch.setattr(ablation, "paired_bootstrap", lambda *_: {"cider_d": Interval(-0.04, -0.3, -0.0)})
    odd = {"dev": iter([None, None])}
    nothing = compare_runs([runs.folder / "slow", again], runs.dataset, runs.folder / "features")["rows"]
    assert nothing[1][2] == "+0.0 (-0.3 to +0.0)", "no -0.0"
    # The chart reads the cells, and leaves out what it cannot read.
    assert [measured(cell) for cell in rows[1][1:3]] == [(55.5, 52.1, 58.9), (1.0, -2.0, 3.0)]


@pytest.mark.parametrize(("against", "other"), [("before", "middling"), ("first", "slow")])
def test_runs_are_compared_with_the_one_before_or_with_the_first(runs: Runs, against: str, other: str) -> None:
    assert len(set(runs.kept.values())) == 3
    difference = runs.kept["fast"] - runs.kept[other]
    assert float(runs.rows(against=against)["fast"]["difference"].split()[0]) == pytest.approx(difference, abs=0.11)


def test_photos_that_could_not_be_read_for_one_of_the_stores_are_left_out(runs: Runs, tmp_path: Path) -> None:
    first, second = tmp_path / "slow", tmp_path / "other"
    shutil.copytree(runs.folder / "slow", first)
    shutil.copytree(first, second)
    config = load_config(first / "config.json")
    dataclasses.replace(config, model=dataclasses.replace(config.model, feature_block="mixed9")).save(
        second / "config.json"
    )
    dev = list(runs.dataset.split("dev"))
    fewer = dataclasses.replace(runs.dataset, splits={**runs.dataset.splits, "dev": dev[1:]})
    shutil.copytree(runs.folder / "features", tmp_path / "features")
    tiny_stores(tmp_path / "features" / "mixed9-plain", fewer)
    store = tmp_path / "features" / "mixed9-plain"
    (store / "store.json").write_text((store / "store.json").read_text().replace("mixed10", "mixed9"))
    (store / "skipped.txt").write_text(f"{dev[0]}\n")
    table = compare_runs([first, second], runs.dataset, tmp_path / "features")
    assert f"Greedy captions of {len(dev) - 1} dev photos" in table["note"]


def test_what_cannot_be_compared_is_said(runs: Runs, tmp_path: Path) -> None:
    nobody = dataclasses.replace(runs.dataset, splits={**runs.dataset.splits, "dev": []})
    with pytest.raises(DataError, match="no photo of the dev split"):
        compare_runs([runs.folder / "slow"], nobody, runs.folder / "features")
    store = shutil.copytree(runs.folder / "features", tmp_path / "features") / "mixed10-plain"
    (store / "names.txt").write_text("")
    (store / "skipped.txt").write_text("".join(f"{name}\n" for name in runs.dataset.captions))
    with pytest.raises(DataError, match="no photo of the dev split"):
        compare_runs([runs.folder / "slow"], runs.dataset, tmp_path / "features", encoder_weights=None)


def test_a_run_with_an_extractor_of_its_own_looks_at_the_photos(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(runs.folder / "slow", tuned)
    names = list(runs.dataset.split("dev"))
    store = open_store(runs.folder / "features", ["mixed10"], "plain")
    # An extractor that knows each photo by its mean colour, and has the stored features for it.
    colours = np.stack([load_pixels(runs.dataset.path(name), size=(6, 8)).mean((0, 1)) / 127.5 - 1 for name in names])

    class Extractor:
        input_shape = (None, 8, 6, 3)

        def __call__(self, photos: np.ndarray, training: bool) -> np.ndarray:
            assert photos.shape[1:] == self.input_shape[1:]
            means = np.asarray(photos).mean((1, 2))
            nearest = ((means[:, None] - colours) ** 2).sum(-1).argmin(1)
            return store.gather([names[index] for index in nearest]).astype(np.float32)[:, :, None]

    given = []
    monkeypatch.setattr(ablation, "load_extractor", lambda *arguments: given.append(arguments) or Extractor())
    (tuned / "extractor.npz").write_bytes(b"")
    both = compare_runs(
        [runs.folder / "slow", tuned], runs.dataset, runs.folder / "features", encoder_weights="some.h5"
    )["rows"]
    assert given == [(tuned, "some.h5")]
    assert both[0][1] == both[1][1] and both[1][2] == "+0.0 (+0.0 to +0.0)"
    broken = dataclasses.replace(runs.dataset, images=shutil.copytree(runs.dataset.images, tmp_path / "photos"))
    broken.path(names[0]).write_bytes(b"no photo")
    table = compare_runs([runs.folder / "slow", tuned], broken, runs.folder / "features")
    assert f"Greedy captions of {len(names) - 1} dev photos" in table["note"]
    assert "do not hold what another seed would change, and are not corrected" in table["note"]
    assert table["rows"][0][1] == table["rows"][1][1]
    assert f"left out: {broken.path(names[0])}" in capsys.readouterr().err


def test_features_of_its_own_inception_that_are_stored_are_read(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = shutil.copytree(runs.folder / "slow", tmp_path / "tuned")
    (tuned / "extractor.npz").write_bytes(b"blocks")
    source = shutil.copytree(runs.folder / "features", tmp_path / "features") / "mixed10-plain" / "store.json"
    source.write_text(json.dumps({**json.loads(source.read_text()), "extractor": extractor_digest(tuned)}))
    monkeypatch.setattr(ablation, "load_extractor", lambda *_: pytest.fail("computed"))
    table = compare_runs([tuned], runs.dataset, tmp_path / "features")
    assert table["rows"][0][1] == runs.rows()["slow"]["CIDEr-D"]
    with pytest.raises(ConfigurationError, match="slow: trained on Inception as it came, but"):
        compare_runs([runs.folder / "slow"], runs.dataset, tmp_path / "features")


def test_the_command_finds_a_place_for_its_table(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(runs.folder / "data"), "--features", str(runs.folder / "features")]
    command = ["ablation", str(runs.folder / "slow"), *data, "-o"]
    for _ in ("a new one", "in place of the old"):
        assert main([*command, str(tmp_path / "new" / "table.json")]) == 0
    table = read_ablation(tmp_path / "new" / "table.json")
    assert capsys.readouterr().out == 2 * f"{markdown_table(table['columns'], table['rows'])}\n\n{table['note']}\n"
    assert main([*command, str(tmp_path / "new")]) == 1
    assert "is a folder, not a file" in capsys.readouterr().err
    for other in (runs.folder / "data" / "Flickr8k.token.txt", runs.folder / "slow" / "config.json"):
        before = other.read_bytes()
        assert main([*command, str(other)]) == 1
        assert "not a file that caplet-export writes here" in capsys.readouterr().err
        assert other.read_bytes() == before


def test_the_command_compares_as_it_is_told(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def compare(folders: list[Path], _: Dataset, features: Path, **options: str) -> dict[str, object]:
        asked.append((folders, features, options))
        return {"title": "x", "columns": list(COLUMNS), "rows": [], "note": "y"}

    monkeypatch.setattr(ablation, "compare_runs", compare)
    data, output = str(runs.folder / "data"), str(tmp_path / "t.json")
    command = ["ablation", "a", "b", "--data", data, "--features", "f", "-o", output]
    assert main(command) == 0
    assert main([*command, "--against", "first", "--encoder-weights", "w.h5"]) == 0
    options = [{"against": "before", "encoder_weights": "imagenet"}, {"against": "first", "encoder_weights": "w.h5"}]
    assert asked == [([Path("a"), Path("b")], Path("f"), given) for given in options]


def test_tensorflow_gives_no_advice_on_functions_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As each run's is: from the fifth on, it would."""
    logger, advice = tf.get_logger(), logging.handlers.BufferingHandler(100)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.setattr(logger, "handlers", [advice])
    logger.setLevel("WARNING")
    for function in (tf.abs, tf.negative):  # of each it is given once
        for _ in range(9):
            tf.function(function, autograph=False)(tf.zeros(1))
        assert any("retracing" in record.getMessage() for record in advice.buffer) == (function is tf.abs)
        load_tensorflow()
        advice.flush()
