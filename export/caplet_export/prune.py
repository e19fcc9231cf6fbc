"""Make a captioner narrower, by removing the units of its state, features and attention that matter least.

Its captions change a little; a few epochs of training (`train --from`) make up for that. It begins them far nearer to
the wide captioner than a narrow one with random weights would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from caplet_export.checkpoint import Checkpoint, empty_model, save_checkpoint
from caplet_export.config import ModelConfig
from caplet_export.errors import ConfigurationError
from caplet_export.extractor_part import copy_extractor_part
from caplet_export.features import StoredFeatures
from caplet_export.freerun import sample
from caplet_export.model import CaptionModel, members_of
from caplet_export.objectives import log_probabilities
from caplet_export.progress import ProgressBar
from caplet_export.stages import cut_stages, write_stages

SIZES = ("state_size", "feature_size", "attention_size")
"""The sizes that can be pruned, by the names of their switches."""
_BATCH = 24
_SAMPLES = 5
Units = Mapping[str, NDArray[Any]]
"""For each of `SIZES`, an array of one number for each unit of a captioner, or of ids of units."""


def unit_importances(checkpoint: Checkpoint, store: StoredFeatures, names: Sequence[str], seed: int) -> Sequence[Units]:
    """How much the likelihood of a captioner's captions would change without each of its units.

    The first-order estimate of Molchanov et al. (CVPR 2019, eq. 8): the square of the sum of weight times gradient over
    the weights through which a unit is read. The captions are drawn at random from the captioner itself. Their
    gradients have a mean of zero and are independent, so that on average the square of a sum over photos is the sum of
    squares.

    Args:
        checkpoint: the run.
        store: features of the blocks it reads.
        names: the photos to caption.
        seed: seed of the captions that are drawn.

    Returns:
        each member's importances [units], summed over the photos.
    """
    model = checkpoint.model
    kernels = [_readers(member) for member in members_of(model)]

    @tf.function(reduce_retracing=True, autograph=False)
    def effects(features: Any, number: Any) -> Any:
        with tf.GradientTape() as tape:
            drawn_from = tf.stack([tf.constant(seed, tf.int64), number])
            sampled = sample(model, features, checkpoint.config.text.max_length, _SAMPLES, drawn_from)
            total = tf.reduce_sum(log_probabilities(*sampled))
        gradients = tape.gradient(total, tf.nest.map_structure(lambda kernel: kernel.value, kernels))
        return tf.nest.map_structure(lambda kernel, of_it: tf.reduce_sum(kernel * of_it, 1), kernels, gradients)

    importances: list[dict[str, Any]] = [dict.fromkeys(SIZES, 0.0) for _ in kernels]
    with ProgressBar(total=len(names), desc="importance", unit="photo") as bar:
        for number, features in enumerate(store.batches(names, _BATCH)):
            members = effects(features, tf.constant(number, tf.int64))
            for importance, member in zip(importances, members, strict=True):
                for size, parts in member.items():
                    importance[size] += np.sum(parts, axis=0) ** 2
            bar.update(len(features))
    return importances


def require_prunable(checkpoint: Checkpoint) -> None:
    """Raise a ConfigurationError if a run has no deep output, the only output whose layers are known here."""
    if not checkpoint.config.model.deep_output:
        raise ConfigurationError(f"{checkpoint.folder}: has no deep output (model.deep_output), and cannot be pruned")


def prune_run(checkpoint: Checkpoint, importances: Sequence[Units], config: ModelConfig, folder: Path) -> None:
    """Write into `folder`, which exists, the run with only the most important units, as many as `config` says.

    The weights of an ensemble are stored in float16, as `join` stores them. Inception blocks that the run trained are
    copied.

    Args:
        checkpoint: the run, see `require_prunable`.
        importances: of each member's units.
        config: the run's, with `SIZES` as they are to be, none of them larger.
        folder: where to.
    """
    model = empty_model(config)
    members = zip(members_of(model), members_of(checkpoint.model), importances, strict=True)
    for ours, theirs, importance in members:
        kept = {size: _largest(importance[size], getattr(config, size)) for size in SIZES}
        places = _places(theirs.config, kept)
        for narrow, wide in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
            layer = narrow.path.split("/")[-2]
            rows, columns = places.get(layer, (slice(None), slice(None)))
            kept_columns = np.asarray(wide)[..., columns]
            narrow.assign((kept_columns[rows] if kept_columns.ndim == 2 else kept_columns).astype(narrow.dtype))
    save_checkpoint(folder, replace(checkpoint.config, model=config), checkpoint.vocabulary, model)
    copy_extractor_part(checkpoint.folder, folder)
    kept_sizes = ", ".join(f"{size} {getattr(config, size)}" for size in SIZES)
    write_stages(folder, cut_stages(checkpoint.folder, f"pruned to {kept_sizes}", config.members))


def _largest(importance: NDArray[Any], count: int) -> NDArray[Any]:
    """Ids of the `count` largest, in ascending order of ids."""
    return np.sort(np.argsort(-importance, kind="stable")[:count])


def _readers(model: CaptionModel) -> dict[str, list[Any]]:
    """For each of `SIZES`, the kernels in which a row reads a unit."""
    layers: dict[str, list[Any]] = {
        "state_size": [model.from_state, model.output_state],
        "feature_size": [model.project_keys, model.initial_state, model.from_context, model.output_context],
        "attention_size": [model.score],
    }
    return {size: [layer.kernel for layer in own if layer is not None] for size, own in layers.items()}


def _places(config: ModelConfig, kept: Units) -> dict[str, tuple[Any, Any]]:
    """Which rows and columns of each layer's kernel stay, and columns of its bias. Layers not named stay whole."""
    everything = slice(None)
    state, feature, attention = (kept[size] for size in SIZES)
    gates = np.concatenate([state + number * config.state_size for number in range(3)])
    # One kernel reads the state, for the attention query, the gate of the context and the gates of the GRU.
    gate = [config.attention_size + feature] if config.gated_context else []
    width = config.attention_size + (config.feature_size if config.gated_context else 0)
    return {
        "project_features": (everything, feature),
        "project_keys": (feature, attention),
        "initial_state": (feature, state),
        "from_state": (state, np.concatenate([attention, *gate, width + gates])),
        "score": (attention, everything),
        "from_word": (everything, gates),
        "from_context": (feature, gates),
        "output_state": (state, everything),
        "output_context": (feature, everything),
    }
