"""What each part of the recipe gained: training runs side by side on the dev split, decoded greedily in Keras."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from caplet_export.checkpoint import Checkpoint, load_checkpoint, load_extractor, open_features
from caplet_export.config import Config, changed_switches
from caplet_export.errors import ConfigurationError, DataError, StoreError
from caplet_export.extractor_part import EXTRACTOR
from caplet_export.features import StoredFeatures
from caplet_export.flickr8k import Dataset
from caplet_export.freerun import FreeRunner
from caplet_export.inception import scale
from caplet_export.metrics import (
    ImageStatistics,
    Scores,
    bigrams_of,
    bootstrap_interval,
    corpus_scores,
    paired_bootstrap,
    references_of,
    signed,
)
from caplet_export.photos import photo_batches, readable_photos
from caplet_export.stages import run_name

_BATCH = 100
COLUMNS = (
    "run", "CIDEr-D", "difference", "BLEU-4", "ROUGE-L", "length", "repeats %", "odd pairs %", "switches changed"
)  # fmt: skip
AGAINST = {
    "before": ("What each stage gave", "Differences are against the row above."),
    "first": ("What each switch gives alone", "Every run differs from the first in the switches named alone."),
}
"""For each run that a row may be compared with, the table's title and the first sentence of its note."""


def compare_runs(
    folders: Sequence[Path],
    dataset: Dataset,
    features: Path,
    against: str = "before",
    encoder_weights: str | None = "imagenet",
) -> dict[str, Any]:
    """Score runs on the dev split, as a table for the model card with one row for each run.

    Args:
        folders: run folders, in the order in which the recipe grew. For one that trained Inception blocks of its own,
            features are computed from the photos unless they are stored.
        dataset: captions and splits.
        features: folder of the feature stores; it must hold the plain view of each block that a run reads from stores.
            Photos that could not be read for one of these stores are left out.
        against: `before` compares each run with the one before it, `first` with the first of all.
        encoder_weights: the Inception weights from which runs with blocks of their own began, as `build_extractor`
            takes them.

    Returns:
        `{"title": ..., "columns": [...], "rows": [[...]], "note": ...}`, whose cells are strings. Intervals are 95%
        bootstrap intervals over images.

    Raises:
        ConfigurationError: a run cannot be read, or was trained on other Inception weights.
        DataError: there is no dev split, or no photo is left.
        StoreError: a store is missing, or has no features of a photo that was added since.
    """
    checkpoints = [load_checkpoint(folder) for folder in folders]
    stores = [_stored(checkpoint, features) for checkpoint in checkpoints]
    names = list(dataset.split("dev"))
    for stored in filter(None, stores):
        names = stored.readable(names)
    if None in stores:
        names = readable_photos(dataset, names)
    if not names:
        raise DataError("no photo of the dev split could be read, now or when its features were stored")
    references = references_of(dataset, names)
    bigrams = bigrams_of(dataset, apart_from="dev")
    rows: list[list[str]] = []
    before: tuple[Config, ImageStatistics] | None = None
    for checkpoint, store in zip(checkpoints, stores, strict=True):
        seen = store.batches(names, _BATCH) if store else _extract(checkpoint.folder, encoder_weights, dataset, names)
        captions = dict(zip(names, _captions(checkpoint, seen), strict=True))
        statistics = ImageStatistics.of(captions, references)
        scores = corpus_scores(captions, references, bigrams, statistics)
        rows.append(_row(run_name(checkpoint.folder), checkpoint.config, scores, statistics, before))
        if before is None or against == "before":
            before = checkpoint.config, statistics
    title, meaning = AGAINST[against]
    note = (
        f"{meaning} Greedy captions of {len(names)} dev photos by the float32 Keras model; in brackets 95% "
        "bootstrap intervals over photos, which do not hold what another seed would change, and are not corrected for "
        "how many there are. Length: the mean number of words. Repeats: captions that say three words in a row twice. "
        "Odd pairs: captions in which two words follow each other that never do."
    )
    return {"title": title, "columns": list(COLUMNS), "rows": rows, "note": note}


def _row(
    run: str,
    config: Config,
    scores: Scores,
    statistics: ImageStatistics,
    before: tuple[Config, ImageStatistics] | None,
) -> list[str]:
    """A run's cells under `COLUMNS`; `before` is the run that it is compared with, None for the first one."""
    interval = bootstrap_interval(statistics)["cider_d"]
    gain, changes = "", "(the baseline)"
    if before is not None:
        config_before, statistics_before = before
        changes = ", ".join(_changes(config_before, config))
        difference = paired_bootstrap(statistics_before, statistics)["cider_d"]
        gain = f"{signed(difference.value, 1)} ({signed(difference.low, 1)} to {signed(difference.high, 1)})"
    return [
        run,
        f"{scores.cider_d:.1f} ({interval.low:.1f} to {interval.high:.1f})",
        gain,
        f"{scores.bleu_4:.1f}",
        f"{scores.rouge_l:.1f}",
        f"{scores.mean_length:.1f}",
        f"{scores.repeated_trigram_share:.1f}",
        "" if scores.implausible_bigram_share is None else f"{scores.implausible_bigram_share:.1f}",
        changes,
    ]


def _captions(checkpoint: Checkpoint, seen: Iterable[Any]) -> list[list[str]]:
    length = checkpoint.config.text.max_length
    runner = FreeRunner(checkpoint.model, length)
    captions: list[list[str]] = []
    for features in seen:
        captions += [checkpoint.vocabulary.decode(row, length) for row in runner.greedy(features).tolist()]
    return captions


def _stored(checkpoint: Checkpoint, features: Path) -> StoredFeatures | None:
    """The features that a run reads; None if they are not stored, but it has Inception blocks that compute them."""
    try:
        return open_features(checkpoint, features)
    except (ConfigurationError, StoreError):
        if (checkpoint.folder / EXTRACTOR).exists():
            return None
        raise


def _extract(folder: Path, encoder_weights: str | None, dataset: Dataset, names: Sequence[str]) -> Iterator[Any]:
    """Features of photos by a run's own extractor, in batches float32 [N,L,C]."""
    extractor = load_extractor(folder, encoder_weights)
    height, width = extractor.input_shape[1:3]
    for read, pixels in photo_batches(dataset, names, size=(width, height), task=run_name(folder)):
        features = extractor(scale(pixels), training=False)
        yield keras.ops.reshape(features, (len(read), -1, features.shape[-1]))


def _changes(before: Config, now: Config) -> list[str]:
    """The switches that differ, as `name value`, without seed and precision."""
    told = {switch.partition(".")[2]: value for switch, value in changed_switches(now, before).items()}
    return [f"{name} {value}" for name, value in told.items() if name not in ("seed", "precision")]
