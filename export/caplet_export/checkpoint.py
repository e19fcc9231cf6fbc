"""A run folder: configuration, vocabulary, weights, and what is needed to go on exactly where training stopped.

::

    config.json             every hyper-parameter
    vocabulary.txt          one word a line
    decoder.weights.h5      the captioner's weights at the best dev CIDEr-D
    extractor.npz           the Inception variables that were trained, float16 (only after fine-tuning)
    history.json, curves.png
    resume/                 the last epoch, whole: weights, optimizer, counters

Everything is written to a temporary name and renamed, so whatever is there is whole.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caplet_export.config import Config, load_config
from caplet_export.errors import ConfigurationError
from caplet_export.text import Vocabulary

if TYPE_CHECKING:
    import keras

    from caplet_export.model import CaptionModel

DECODER, EXTRACTOR = "decoder.weights.h5", "extractor.npz"


@dataclass(frozen=True)
class Checkpoint:
    """A trained captioner, loaded."""

    folder: Path
    config: Config
    vocabulary: Vocabulary
    model: CaptionModel


def load_checkpoint(folder: Path | str, dtype: str = "float32") -> Checkpoint:
    """Load the captioner of a run folder.

    Raises:
        ConfigurationError: a file is missing or damaged, or the weights belong to another configuration.
    """
    from caplet_export.model import build_model

    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no such run folder")
    config = load_config(folder / "config.json")
    vocabulary = Vocabulary.load(folder / "vocabulary.txt")
    if len(vocabulary) != config.model.vocabulary_size:
        raise ConfigurationError(
            f"{folder}: vocabulary.txt has {len(vocabulary)} words, config.json says {config.model.vocabulary_size}"
        )
    model = build_model(config.model, dtype)
    load_weights(model, folder / DECODER)
    return Checkpoint(folder, config, vocabulary, model)


def load_weights(model: keras.Model, path: Path) -> None:
    """Load Keras weights, or say in one line why they do not fit."""
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file; has the run finished an epoch?")
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(f"{path}: weights of another configuration, or damaged: {reason}") from error


def save_weights(model: keras.Model, path: Path) -> None:
    """Save Keras weights; the old file stays until the new one is whole."""
    temporary = path.with_name("." + path.name)
    model.save_weights(temporary)
    os.replace(temporary, path)


def save_variables(variables: Sequence[Any], path: Path, dtype: str | None = None) -> None:
    """Save variables by their paths to an .npz file."""
    arrays = {variable.path: np.asarray(variable.numpy(), dtype) for variable in variables}
    temporary = path.with_name("." + path.name)
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)


def load_variables(variables: Sequence[Any], path: Path) -> int:
    """Assign what `save_variables` wrote to the variables of the same paths; returns how many.

    Raises:
        ConfigurationError: the file is missing or damaged, names a variable that is not there, or another shape.
    """
    by_path = {variable.path: variable for variable in variables}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                if name not in by_path:
                    raise ConfigurationError(f"{path}: holds {name}, which this model does not have")
                value = arrays[name]
                if value.shape != tuple(by_path[name].shape):
                    raise ConfigurationError(f"{path}: {name} is {value.shape}, not {tuple(by_path[name].shape)}")
                by_path[name].assign(value.astype(by_path[name].dtype))
            return len(arrays.files)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def load_extractor(folder: Path | str, weights: str | None) -> keras.Model:
    """The feature extractor of a run: `weights`, with what the run trained of it on top."""
    from caplet_export.inception import build_extractor

    extractor = build_extractor(weights)
    trained = Path(folder) / EXTRACTOR
    if trained.exists():
        load_variables(extractor.variables, trained)
    return extractor
