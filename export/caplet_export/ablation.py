"""What each part of the recipe gave: training runs side by side on the dev split, greedy, in Keras."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caplet_export.checkpoint import Checkpoint, load_checkpoint, require_frozen_extractor
from caplet_export.config import Config
from caplet_export.errors import DataError
from caplet_export.features import StoredFeatures, open_store
from caplet_export.flickr8k import Dataset
from caplet_export.freerun import FreeRunner, captions_of
from caplet_export.metrics import (
    ImageStatistics,
    bigrams_of,
    bootstrap_interval,
    corpus_scores,
    paired_bootstrap,
    references_of,
)
from caplet_export.views import PLAIN

_BATCH = 100
COLUMNS = ("run", "CIDEr-D", "difference", "BLEU-4", "ROUGE-L", "words", "repeats %", "odd pairs %", "switches changed")
AGAINST = {
    "before": ("What each stage gave", "Differences are against the row above."),
    "first": ("What each switch gives alone", "Every run differs from the first in the switches named alone."),
}
"""What a row is compared with: what such a table is called, and what is said below it."""


def compare_runs(
    folders: Sequence[Path], dataset: Dataset, features: Path, split: str = "dev", against: str = "before"
) -> dict[str, Any]:
    """A table for the model card, a row a run.

    Args:
        folders: run folders, in the order in which the recipe grew; none that trained Inception blocks of its own.
        dataset: captions and splits.
        features: folder of the feature stores; the plain view of each block that a run reads must be there. Photos
            that one of them lacks are left out.
        split: the split that is captioned.
        against: `before` compares each run with the one before it, `first` with the first of all.

    Returns:
        `{"title": ..., "columns": [...], "rows": [[...]], "note": ...}`; intervals are 95% bootstrap intervals over
        images.

    Raises:
        ConfigurationError: a run cannot be read, or has trained Inception blocks of its own.
        DataError: no photo is left.
    """
    checkpoints = [load_checkpoint(folder) for folder in folders]
    for checkpoint in checkpoints:
        require_frozen_extractor(checkpoint, "compared: the stored features are not theirs")
    stores = [open_store(features, checkpoint.config.model.blocks, PLAIN) for checkpoint in checkpoints]
    names = list(dataset.split(split))
    for store in stores:
        names = store.readable(names)
    if not names:
        raise DataError(f"no photo of the {split} split has features in every store that is read")
    references = references_of(dataset, names)
    bigrams = bigrams_of(dataset, apart_from=split)
    rows: list[list[str]] = []
    before: tuple[Config, ImageStatistics] | None = None
    for folder, checkpoint, store in zip(folders, checkpoints, stores, strict=True):
        captions = dict(zip(names, _captions(checkpoint, store, names), strict=True))
        statistics = ImageStatistics.of(captions, references)
        scores = corpus_scores(captions, references, bigrams)
        interval = bootstrap_interval(statistics)["cider_d"]
        gain = ""
        if before is not None:
            difference = paired_bootstrap(before[1], statistics)["cider_d"]
            gain = f"{difference.value:+.1f} ({difference.low:+.1f} to {difference.high:+.1f})"
        rows.append(
            [
                folder.name,
                f"{scores.cider_d:.1f} ({interval.low:.1f} to {interval.high:.1f})",
                gain,
                f"{scores.bleu_4:.1f}",
                f"{scores.rouge_l:.1f}",
                f"{scores.mean_length:.1f}",
                f"{scores.repeated_trigram_share:.1f}",
                "" if scores.implausible_bigram_share is None else f"{scores.implausible_bigram_share:.1f}",
                ", ".join(_changes(before[0] if before else None, checkpoint.config)),
            ]
        )
        if before is None or against == "before":
            before = checkpoint.config, statistics
    title, meaning = AGAINST[against]
    note = (
        f"{meaning} Greedy captions of {len(names)} {split} photos by the float32 Keras model; in brackets 95% "
        "bootstrap intervals over photos. Odd pairs: captions in which two words follow each other that never do."
    )
    return {"title": title, "columns": list(COLUMNS), "rows": rows, "note": note}


def _captions(checkpoint: Checkpoint, store: StoredFeatures, names: Sequence[str]) -> list[list[str]]:
    length = checkpoint.config.text.max_length
    runner = FreeRunner(checkpoint.model, length)
    captions: list[list[str]] = []
    for features in store.batches(names, _BATCH):
        captions += captions_of(runner.greedy(features), checkpoint.vocabulary, length)
    return captions


def _changes(before: Config | None, now: Config) -> list[str]:
    """The switches that differ, as `name value`."""
    if before is None:
        return ["(the baseline)"]
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    return [
        f"{name} {value}"
        for section, switches in new.items()
        for name, value in switches.items()
        if value != old[section][name] and name not in ("seed", "vocabulary_size", "precision")
    ]
