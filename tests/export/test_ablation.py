"""Runs side by side: scores as the trainer measured them, and what differs between the runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from caplet_export.ablation import COLUMNS, compare_runs
from caplet_export.flickr8k import Dataset, read_dataset
from test_train import CONFIG, Trainer, tiny_stores
from tiny_flickr8k import write_tiny_flickr8k

RATES = {"slow": 0.001, "middling": 0.01, "fast": 0.03}


@dataclasses.dataclass(frozen=True)
class Runs:
    """Trained runs of other learning rates, and the dev score that each measured of the epoch it kept."""

    folder: Path
    dataset: Dataset
    kept: dict[str, float]

    def rows(self, **options: str) -> dict[str, dict[str, str]]:
        """The table's rows by the names of their runs."""
        table = compare_runs([self.folder / name for name in RATES], self.dataset, self.folder / "features", **options)
        assert table["columns"] == list(COLUMNS)
        return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in table["rows"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("ablation")
    dataset = read_dataset(write_tiny_flickr8k(folder / "data", dev=8))
    stores = tiny_stores(folder / "features" / "mixed10-plain", dataset)
    kept = {}
    for name, rate in RATES.items():
        config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, learning_rate=rate, epochs=20))
        trainer = Trainer(folder / name, config, dataset, stores)
        while not trainer.finished:
            trainer.run_epoch()
        assert trainer.best is not None
        kept[name] = trainer.best.dev_cider
    return Runs(folder, dataset, kept)


def test_a_row_a_run_with_the_dev_score_of_its_training(runs: Runs) -> None:
    rows = runs.rows()
    for name, kept in runs.kept.items():
        assert float(rows[name]["CIDEr-D"].split()[0]) == pytest.approx(kept, abs=0.06)
    assert rows["slow"]["difference"] == ""
    assert rows["fast"]["switches changed"] == "learning_rate 0.03"


@pytest.mark.parametrize(("against", "other"), [("before", "middling"), ("first", "slow")])
def test_runs_are_compared_with_the_one_before_or_with_the_first(runs: Runs, against: str, other: str) -> None:
    assert len(set(runs.kept.values())) == 3
    difference = runs.kept["fast"] - runs.kept[other]
    assert float(runs.rows(against=against)["fast"]["difference"].split()[0]) == pytest.approx(difference, abs=0.11)
