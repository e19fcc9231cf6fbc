"""Make one captioner of several: an ensemble that speaks for all of them, or one with the mean of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from caplet_export.checkpoint import Checkpoint, empty_model, load_checkpoint, save_checkpoint
from caplet_export.config import ModelConfig
from caplet_export.errors import ConfigurationError
from caplet_export.extractor_part import average_extractor_parts, copy_extractor_part, extractor_digest
from caplet_export.model import members_of
from caplet_export.stages import (
    average_stages,
    encoder_weights,
    join_stages,
    require_encoder_weights,
    require_one_beginning,
    write_stages,
)


def join_runs(runs: Sequence[Path], folder: Path) -> None:
    """Write into `folder`, which exists, a run whose model is the ensemble of the captioners of `runs`.

    A run that is an ensemble itself brings all of its members. Weights are stored in float16.

    Raises:
        ConfigurationError: fewer than two runs; runs of different vocabularies, text.* switches, sizes or Inception
            weights; or runs that did not all go on from one run that trained Inception blocks, or did so themselves.
    """
    checkpoints = _alike(runs, as_members=True)
    first = checkpoints[0]
    members = [member for checkpoint in checkpoints for member in members_of(checkpoint.model)]
    blocks = [member.config.feature_block for member in members]
    read = blocks[0] if len(set(blocks)) == 1 else " ".join(blocks)
    config = replace(first.config, model=replace(first.config.model, members=len(members), feature_block=read))
    model = empty_model(config.model)
    for ours, theirs in zip(members_of(model), members, strict=True):
        for variable, value in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
            variable.assign(np.asarray(value, np.float16))
    save_checkpoint(folder, config, first.vocabulary, model)
    copy_extractor_part(first.folder, folder)
    write_stages(folder, join_stages(runs, [checkpoint.config.model.members for checkpoint in checkpoints]))


def average_runs(runs: Sequence[Path], folder: Path) -> None:
    """Write into `folder`, which exists, a run with the mean of the weights of `runs`.

    For runs that share a start, or epochs of one run: their weights lie in one basin of the loss, where the mean is
    better than most (model soups; Wortsman et al., ICML 2022). The mean of runs with different starts is useless. The
    weights of an ensemble are stored in float16, as by `join_runs`. The trained parts of Inception are averaged too.

    Raises:
        ConfigurationError: as `join_runs`, except that each run may have trained the same Inception blocks; or runs
            that began with different trainings.
    """
    checkpoints = _alike(runs)
    require_one_beginning(runs)
    last = checkpoints[-1]
    model = empty_model(last.config.model)
    weights = (checkpoint.model.trainable_variables for checkpoint in checkpoints)
    for variable, *values in zip(model.trainable_variables, *weights, strict=True):
        variable.assign(np.mean([np.asarray(value) for value in values], axis=0).astype(variable.dtype))
    save_checkpoint(folder, last.config, last.vocabulary, model)
    if len(set(map(extractor_digest, runs))) == 1:
        copy_extractor_part(runs[0], folder)
    else:
        average_extractor_parts(runs, folder)
    write_stages(folder, average_stages(runs, last.config.model.members))


def _alike(runs: Sequence[Path], *, as_members: bool = False) -> list[Checkpoint]:
    """The checkpoints of runs that can be put together."""
    if len(runs) < 2:
        raise ConfigurationError("at least two runs are needed")
    checkpoints = [load_checkpoint(run) for run in runs]
    first = checkpoints[0]
    known = next(filter(encoder_weights, runs), first.folder)  # the first that says what it was trained on, if any does
    for run in runs:
        require_encoder_weights(run, encoder_weights(known), known)
    for other in checkpoints[1:]:
        if other.vocabulary.words != first.vocabulary.words:
            raise ConfigurationError(f"{other.folder}: its vocabulary is not that of {first.folder}")
        if other.config.text != first.config.text:
            raise ConfigurationError(f"{other.folder}: its text.* switches are not those of {first.folder}")
        sizes, expected = (_sizes(checkpoint.config.model, as_members) for checkpoint in (other, first))
        if sizes != expected:
            raise ConfigurationError(f"{other.folder}: its model.* switches are not those of {first.folder}")
    extractors = {run: extractor_digest(run) for run in runs}
    different = set(extractors.values())
    if len(different) > 1 and (as_members or None in different):
        trained = next(run for run, digest in extractors.items() if digest)
        raise ConfigurationError(f"{trained}: trained Inception blocks of its own, which the others do not share")
    return checkpoints


def _sizes(config: ModelConfig, as_members: bool) -> ModelConfig:
    """The model with only the switches that shape a run's weights or arithmetic; for runs that become members, those of
    one member without the block, since members may read different ones.
    """
    config = replace(config, dropout=0.0, channel_dropout=0.0)
    return replace(config, members=1, feature_block=ModelConfig.feature_block) if as_members else config
