"""A run folder: configuration, vocabulary, weights, and the state from which training goes on exactly.

::

    config.json             every hyper-parameter
    vocabulary.txt          one word a line
    decoder.weights.h5      the captioner's weights at the best dev CIDEr-D, or without patience the last
    extractor.npz           the trained part of Inception, as differences from the weights it began with (if any)
    history.json, curves.png
    stages.json             every stage of its training, from random weights on
    resume.npz              the whole state after the last epoch: weights, optimizer, history

Every file is written under a temporary name and then renamed, so a file that is there is whole, and the weights of
decoder and extractor are of one epoch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from caplet_export.config import Config, ModelConfig, load_run_config
from caplet_export.errors import ConfigurationError, in_one_line, no_run
from caplet_export.extractor_part import EXTRACTOR, extractor_digest, load_extractor_part
from caplet_export.features import StoredFeatures, open_store, weights_digest
from caplet_export.inputs import DAMAGED
from caplet_export.outputs import require_space, whole_file
from caplet_export.stages import require_encoder_weights
from caplet_export.text import Vocabulary
from caplet_export.views import PLAIN

if TYPE_CHECKING:
    import keras

    from caplet_export.model import Captioner

DECODER = "decoder.weights.h5"


@dataclass(frozen=True)
class Checkpoint:
    """A trained captioner, loaded."""

    folder: Path
    config: Config
    vocabulary: Vocabulary
    model: Captioner


def load_checkpoint(folder: Path | str, dtype: str = "float32") -> Checkpoint:
    """Load the captioner of a run folder, to compute in `dtype` as `build_model` takes it.

    Raises:
        ConfigurationError: a file is missing or damaged, or the weights belong to another configuration.
    """
    folder = Path(folder)
    config = load_run_config(folder)
    vocabulary = Vocabulary.load(folder / "vocabulary.txt")
    if len(vocabulary) != config.model.vocabulary_size:
        raise ConfigurationError(
            f"{folder}: vocabulary.txt has {len(vocabulary)} words, config.json says {config.model.vocabulary_size}"
        )
    model = model_to_load(config.model, dtype)
    load_weights(model, folder)
    return Checkpoint(folder, config, vocabulary, model)


def run_digest(folder: Path) -> str:
    """sha256 of a run's weights, as hexadecimal digits. Raises a ConfigurationError if there are none."""
    if not (folder / DECODER).exists():
        raise no_run(folder)
    digest = hashlib.sha256((folder / DECODER).read_bytes())
    if (folder / EXTRACTOR).exists():
        digest.update((folder / EXTRACTOR).read_bytes())
    return digest.hexdigest()


def is_half_saved(run: Path) -> bool:
    """Whether a run was stopped when, of an epoch's two files, only the decoder's was in its place (`whole_files`)."""
    return (run / f".{EXTRACTOR}").exists() and not (run / f".{DECODER}").exists()


def open_features(checkpoint: Checkpoint, folder: Path) -> StoredFeatures:
    """The stored features that a run reads, of the plain view of the photos.

    Raises:
        StoreError: as `open_store`.
        ConfigurationError: as `require_features_of`; or the run was trained on features of another shape.
    """
    store = open_store(folder, checkpoint.config.model.blocks, PLAIN)
    require_features_of(checkpoint.folder, store)
    require_shape(checkpoint.config.model, (store.source.locations, store.source.channels), checkpoint.folder)
    return store


def require_shape(config: ModelConfig, shape: Sequence[int], run: Path) -> None:
    """Raise a ConfigurationError if a run's model cannot read features of this shape, channels last and without N."""
    *sides, channels = shape
    found, expected = (math.prod(sides), channels), (config.locations, config.extractor_channels)
    if found != expected:
        said, given = (f"{locations}×{channels}" for locations, channels in (expected, found))
        raise ConfigurationError(f"{run}: model.locations, model.channels: {said}, but the features have {given}")


def require_features_of(run: Path, store: StoredFeatures) -> None:
    """Raise a ConfigurationError if a run cannot read features, since they were made with other Inception weights than
    it was trained on, or not with the Inception blocks that it trained.
    """
    require_encoder_weights(run, store.source.weights, store.folder)
    own = extractor_digest(run)
    if store.source.extractor == own:
        return
    if own:
        raise ConfigurationError(
            f"{run}: trained Inception blocks of its own, but {store.folder} was made with others; make its features "
            "by `caplet-export features --run`"
        )
    raise ConfigurationError(
        f"{run}: trained on Inception as it came, but {store.folder} was made with blocks that a run trained"
    )


def empty_model(config: ModelConfig) -> Captioner:
    """A model to be filled and saved: a single captioner in float32, for further training, an ensemble in float16."""
    return model_to_load(config, "float16" if config.members > 1 else "float32")


def model_to_load(config: ModelConfig, dtype: str = "float32") -> Captioner:
    """`build_model` for weights that are loaded next: most begin as zeros, which is faster than drawing them."""
    from caplet_export.model import build_model
    from caplet_export.scopes import loaded_later

    with loaded_later():
        return build_model(config, dtype)


def save_checkpoint(folder: Path, config: Config, vocabulary: Vocabulary, model: Captioner) -> None:
    """Write the files that `load_checkpoint` reads into `folder`, which exists. Raises OSError."""
    require_space(folder, sum(np.asarray(variable).nbytes for variable in model.variables))
    vocabulary.save(folder / "vocabulary.txt")
    config.save(folder / "config.json")
    save_weights(model, folder / DECODER)


def load_weights(model: keras.Model, run: Path) -> None:
    """Load a run's weights. Raises a ConfigurationError if they are missing, damaged, of another configuration, or of
    another epoch than its Inception blocks.
    """
    path = run / DECODER
    if not path.exists():
        raise no_run(run)
    if is_half_saved(run):
        cause = "stopped while it saved an epoch, so its weights are of two epochs; run its command again"
        raise ConfigurationError(f"{run}: {cause}")
    try:
        model.load_weights(path)
    except DAMAGED as error:
        raise ConfigurationError(
            f"{path}: weights of another configuration, or damaged: {in_one_line(error)}"
        ) from error


def save_weights(model: keras.Model, path: Path) -> None:
    """Save Keras weights; the old file stays until the new one is whole. Raises OSError."""
    with whole_file(path) as temporary:
        model.save_weights(temporary)


def load_extractor(folder: Path | str, weights: str | None, dtype: str = "float32") -> keras.Model:
    """The feature extractor of a run, up to the blocks it reads: Inception with `weights` and the run's trained part,
    to compute in `dtype` as `build_extractor` takes it.

    Raises:
        ConfigurationError: the run was trained on other weights, or on features of another shape; or as
            `build_extractor` and `load_extractor_part`.
        StoreError: the file of `weights` cannot be read.
    """
    from caplet_export.inception import build_extractor

    folder = Path(folder)
    if weights is not None:
        require_encoder_weights(folder, weights_digest(weights), f"--encoder-weights {weights}")
    model = load_run_config(folder).model
    extractor = build_extractor(weights, dtype, model.blocks)
    require_shape(model, extractor.output_shape[1:], folder)
    load_extractor_part(extractor, folder)
    return extractor
