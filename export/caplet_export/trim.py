"""Leave a captioner only the words that it would say: most of a vocabulary is never among the likeliest words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet_export.checkpoint import Checkpoint, empty_model, save_checkpoint
from caplet_export.errors import ConfigurationError
from caplet_export.extractor_part import copy_extractor_part
from caplet_export.features import StoredFeatures
from caplet_export.freerun import FreeRunner
from caplet_export.model import members_of
from caplet_export.progress import ProgressBar
from caplet_export.stages import cut_stages, write_stages
from caplet_export.text import SPECIALS, Vocabulary

_BATCH = 100


def proposed_words(checkpoint: Checkpoint, store: StoredFeatures, names: Sequence[str], likeliest: int) -> set[int]:
    """Ids of the words that are among the `likeliest` likeliest at any step of the greedy captions of photos."""
    runner = FreeRunner(checkpoint.model, checkpoint.config.text.max_length)
    likeliest = min(likeliest, len(checkpoint.vocabulary))
    words: set[int] = set()
    with ProgressBar(total=len(names), desc="words", unit="photo") as bar:
        for features in store.batches(names, _BATCH):
            words.update(np.unique(runner.proposals(features, likeliest)).tolist())
            bar.update(len(features))
    return words


def trim_run(checkpoint: Checkpoint, kept: Iterable[int], reason: str, folder: Path) -> Vocabulary:
    """Write into `folder`, which exists, the run with these words, in their order, and no others.

    Its greedy captions are those of the run as long as no other word is the likeliest; log-probabilities are those of
    the softmax over the words left, and so a little higher. The weights of an ensemble are stored in float16, as `join`
    stores them.

    Args:
        checkpoint: the run; what it trained of Inception is copied with it.
        kept: ids of words; `<pad>`, `<start>`, `<end>` and `<unk>` stay anyhow.
        reason: which words these are, for the model card.
        folder: where to.

    Returns:
        the vocabulary that is left.

    Raises:
        ConfigurationError: none of these words can be said.
    """
    ids = np.array(sorted({*range(len(SPECIALS)), *kept}))
    if len(ids) == len(SPECIALS):
        raise ConfigurationError(f"{checkpoint.folder}: no word would be left that can be said; keep more words")
    config = replace(checkpoint.config, model=replace(checkpoint.config.model, vocabulary_size=len(ids)))
    model = empty_model(config.model)
    for ours, theirs in zip(members_of(model), members_of(checkpoint.model), strict=True):
        # Only variables with a place for each word differ in shape, and only in that one dimension.
        for variable, whole in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
            variable.assign(_of_words(np.asarray(whole), ids, variable.shape).astype(variable.dtype))
    vocabulary = Vocabulary([checkpoint.vocabulary.words[number] for number in ids])
    save_checkpoint(folder, config, vocabulary, model)
    copy_extractor_part(checkpoint.folder, folder)
    left = f"vocabulary: {len(ids)} words, {reason}"
    write_stages(folder, cut_stages(checkpoint.folder, left, config.model.members))
    return vocabulary


def _of_words(whole: NDArray[Any], ids: NDArray[np.int64], shape: Sequence[int]) -> NDArray[Any]:
    for axis, (length, wanted) in enumerate(zip(whole.shape, shape, strict=True)):
        if length != wanted:
            whole = np.take(whole, ids, axis=axis)
    return whole
