"""Runs side by side: scores as the trainer measured them, and what differs between the runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from caplet_export.ablation import COLUMNS, compare_runs
from caplet_export.flickr8k import read_dataset
from test_train import CONFIG, Trainer, tiny_stores
from tiny_flickr8k import write_tiny_flickr8k


def test_a_row_a_run_with_the_dev_score_of_its_training(tmp_path: Path) -> None:
    dataset = read_dataset(write_tiny_flickr8k(tmp_path / "data"))
    stores = tiny_stores(tmp_path / "features" / "mixed10-plain", dataset)
    kept = []
    for name, rate in (("slow", 0.001), ("fast", 0.03)):
        config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, learning_rate=rate, epochs=4))
        trainer = Trainer(tmp_path / name, config, dataset, stores)
        while not trainer.finished:
            trainer.run_epoch()
        assert trainer.best is not None
        kept.append(trainer.best.dev_cider)
    table = compare_runs([tmp_path / "slow", tmp_path / "fast"], dataset, stores.dev)
    assert table["columns"] == list(COLUMNS)
    slow, fast = (dict(zip(COLUMNS, row, strict=True)) for row in table["rows"])
    for row, cider in zip((slow, fast), kept, strict=True):
        assert float(row["CIDEr-D"].split()[0]) == pytest.approx(cider, abs=0.06)
    assert float(fast["against the row before"].split()[0]) == pytest.approx(kept[1] - kept[0], abs=0.11)
    assert fast["switches changed"] == "learning_rate 0.03"
