"""A run folder: configuration, vocabulary, weights, and what is needed to go on exactly where training stopped.

::

    config.json             every hyper-parameter
    vocabulary.txt          one word a line
    decoder.weights.h5      the captioner's weights at the best dev CIDEr-D
    extractor.npz           the Inception variables that were trained, float16 (only after fine-tuning)
    history.json, curves.png
    stages.json             how it came about, from random weights on
    resume.npz              the last epoch, whole: weights, optimizer, history

Everything is written to a temporary name and renamed, so whatever is there is whole.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caplet_export.config import Config, ModelConfig, load_config
from caplet_export.errors import ConfigurationError
from caplet_export.text import Vocabulary

if TYPE_CHECKING:
    import keras

    from caplet_export.model import Captioner, CaptionModel

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
    if not (folder / "config.json").exists():
        raise ConfigurationError(f"{folder}: no config.json here; has the run finished an epoch?")
    config = load_config(folder / "config.json")
    vocabulary = Vocabulary.load(folder / "vocabulary.txt")
    if len(vocabulary) != config.model.vocabulary_size:
        raise ConfigurationError(
            f"{folder}: vocabulary.txt has {len(vocabulary)} words, config.json says {config.model.vocabulary_size}"
        )
    model = build_model(config.model, dtype)
    load_weights(model, folder / DECODER)
    return Checkpoint(folder, config, vocabulary, model)


def require_frozen_extractor(checkpoint: Checkpoint, done: str) -> None:
    """Raise a ConfigurationError, that the run cannot be `done`, if it trained Inception blocks of its own."""
    if (checkpoint.folder / EXTRACTOR).exists():
        raise ConfigurationError(f"{checkpoint.folder}: trained Inception blocks of its own, and cannot be {done}")


def empty_model(config: ModelConfig) -> Captioner:
    """A model to be filled and saved: a captioner in float32, from which training goes on, an ensemble in float16."""
    from caplet_export.model import build_model

    return build_model(config, "float16" if config.members > 1 else "float32")


def save_checkpoint(folder: Path, config: Config, vocabulary: Vocabulary, model: Captioner) -> None:
    """Write into `folder`, which exists, what `load_checkpoint` reads."""
    vocabulary.save(folder / "vocabulary.txt")
    config.save(folder / "config.json")
    save_weights(model, folder / DECODER)


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


def save_extractor_part(extractor: keras.Model, trained: Sequence[Any], path: Path) -> None:
    """Save some of the extractor's variables as float16, by their position in it (names change between builds)."""
    wanted = {id(variable) for variable in trained}
    arrays = {
        f"{position}": np.asarray(variable.numpy(), np.float16)
        for position, variable in enumerate(extractor.variables)
        if id(variable) in wanted
    }
    temporary = path.with_name("." + path.name)
    np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)


def load_extractor_part(extractor: keras.Model, path: Path) -> None:
    """Assign what `save_extractor_part` wrote.

    Raises:
        ConfigurationError: the file is damaged, or its arrays are not this extractor's.
    """
    variables = extractor.variables
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                variable, value = variables[int(name)], arrays[name]
                if value.shape != tuple(variable.shape):
                    raise ConfigurationError(f"{path}: array {name} is {value.shape}, not {tuple(variable.shape)}")
                variable.assign(value.astype(np.float32))
    except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{path}: damaged: {error}") from error


def load_extractor(folder: Path | str, weights: str | None) -> keras.Model:
    """The feature extractor of a run, up to the blocks it reads: `weights`, with what the run trained of it on top."""
    from caplet_export.inception import build_extractor

    blocks = load_config(Path(folder) / "config.json").model.blocks
    extractor = build_extractor(weights, blocks=blocks)
    trained = Path(folder) / EXTRACTOR
    if trained.exists():
        load_extractor_part(extractor, trained)
    return extractor
