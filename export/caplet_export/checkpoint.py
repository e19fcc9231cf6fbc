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
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caplet_export.config import Config, ModelConfig, load_config
from caplet_export.errors import ConfigurationError
from caplet_export.features import StoredFeatures, open_store, weights_digest
from caplet_export.outputs import require_space, whole_file
from caplet_export.stages import require_encoder_weights
from caplet_export.text import Vocabulary
from caplet_export.views import PLAIN

if TYPE_CHECKING:
    import keras

    from caplet_export.model import Captioner

DECODER, EXTRACTOR = "decoder.weights.h5", "extractor.npz"
_BASE = "base"
DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error, SyntaxError, tokenize.TokenError,
)  # fmt: skip
"""What reading a damaged .npz or HDF5 file may raise: its bytes may ask for any compression, password or length, and
NumPy reads the headers of arrays with Python's own parser."""


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
    model = model_to_load(config.model, dtype)
    load_weights(model, folder / DECODER)
    return Checkpoint(folder, config, vocabulary, model)


def run_digest(folder: Path) -> str:
    """sha256 of a run's weights, as hexadecimal digits. Raises a ConfigurationError if there are none."""
    if not (folder / DECODER).exists():
        raise ConfigurationError(f"{folder}: no trained run there")
    digest = hashlib.sha256((folder / DECODER).read_bytes())
    if (folder / EXTRACTOR).exists():
        digest.update((folder / EXTRACTOR).read_bytes())
    return digest.hexdigest()


def extractor_digest(run: Path) -> str | None:
    """sha256 of the part of Inception that a run trained, or took over, as hexadecimal digits; None if it has none."""
    path = run / EXTRACTOR
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def is_half_saved(run: Path) -> bool:
    """Whether a run was stopped when, of an epoch's two files, only the decoder's was in its place (`whole_files`)."""
    return (run / f".{EXTRACTOR}").exists() and not (run / f".{DECODER}").exists()


def copy_extractor_part(run: Path, folder: Path) -> None:
    """Give the run in `folder` the part of Inception that `run` trained, if it has one. Raises OSError."""
    if (run / EXTRACTOR).exists():
        with whole_file(folder / EXTRACTOR) as temporary:
            shutil.copyfile(run / EXTRACTOR, temporary)


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


def require_shape(config: ModelConfig, shape: Sequence[int], run: Path | str) -> None:
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


def load_weights(model: keras.Model, path: Path) -> None:
    """Load a run's weights. Raises a ConfigurationError if they are missing, damaged, of another configuration, or of
    another epoch than its Inception blocks.
    """
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file; has the run finished an epoch?")
    if is_half_saved(path.parent):
        cause = "stopped while it saved an epoch, so its weights are of two epochs; run its command again"
        raise ConfigurationError(f"{path.parent}: {cause}")
    try:
        model.load_weights(path)
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(f"{path}: weights of another configuration, or damaged: {reason}") from error


def save_weights(model: keras.Model, path: Path) -> None:
    """Save Keras weights; the old file stays until the new one is whole. Raises OSError."""
    with whole_file(path) as temporary:
        model.save_weights(temporary)


class ExtractorPart:
    """The part of the extractor that a run trains, kept as differences from the Inception weights it began with.

    Differences of kernels are stored in 8 bits, with a scale for each output channel. They are small beside the
    weights: rounding adds noise of a millionth of the weights' energy (the released model: 59 decibels), in half of the
    space of float16 (19 MB). Variables are known by their positions, as their names change between builds.

    Args:
        extractor: the extractor with the weights it began with, of which a copy is kept.
        trained: those of its variables that are trained.
    """

    def __init__(self, extractor: keras.Model, trained: Sequence[Any]) -> None:
        variables = extractor.variables
        position_of = {id(variable): position for position, variable in enumerate(variables)}
        self._positions = [position_of[id(variable)] for variable in trained]
        self._before = {position: np.array(variables[position]) for position in sorted(self._positions)}

    def take_over(self, extractor: keras.Model, run: Path) -> None:
        """Add a run's trained part to the extractor, if the run has one.

        Raises:
            ConfigurationError: as `load_extractor_part`; or the run trained variables that are not trained here, whose
                differences would be lost.
        """
        path = run / EXTRACTOR
        if not path.exists():
            return
        if not _read_differences(path)[0].keys() <= self._before.keys():
            cause = "trained Inception from a lower block on; set the same train.extractor_layer"
            raise ConfigurationError(f"{run}: {cause}")
        load_extractor_part(extractor, path)

    def save(self, values: Sequence[Any], path: Path) -> None:
        """Write values of the trained variables, in the order of `trained`. Raises OSError."""
        differences = {
            position: np.asarray(value, np.float32) - self._before[position]
            for position, value in zip(self._positions, values, strict=True)
        }
        _write_differences(differences, checksum(self._before.values()), path)


def load_extractor_part(extractor: keras.Model, path: Path) -> None:
    """Add the differences that `ExtractorPart.save` wrote to the weights that the run began with.

    Raises:
        ConfigurationError: the file is missing or damaged, its arrays have other shapes than this extractor's, or the
            extractor holds other weights than the run began with.
    """
    variables = extractor.variables
    differences, base = _read_differences(path)
    if differences and max(differences) >= len(variables):
        raise ConfigurationError(f"{path}: damaged: variable {max(differences)} of {len(variables)}")
    before = {position: np.array(variables[position]) for position in differences}
    for position, difference in differences.items():
        if difference.shape != before[position].shape:
            raise ConfigurationError(f"{path}: array {position} is {difference.shape}, not {before[position].shape}")
    if base != checksum(before.values()):
        raise ConfigurationError(f"{path}: trained from other weights; give the same --encoder-weights")
    for position, difference in differences.items():
        variables[position].assign(before[position] + difference)


def average_extractor_parts(paths: Sequence[Path], target: Path) -> None:
    """Write the mean of the trained parts of several runs, which began with the same Inception weights.

    Raises:
        ConfigurationError: one of them is damaged, or trained from other weights or other blocks than the first.
    """
    parts = [_read_differences(path) for path in paths]
    (first, base), *others = parts
    for path, (differences, other) in zip(paths[1:], others, strict=True):
        if other != base or differences.keys() != first.keys():
            raise ConfigurationError(f"{path}: trained from other Inception weights or blocks than {paths[0]}")
    mean = {position: np.mean([part[position] for part, _ in parts], axis=0) for position in first}
    _write_differences(mean, base, target)


def _write_differences(differences: Mapping[int, NDArray[np.float32]], base: int, path: Path) -> None:
    """Write differences by their variables' positions, and the checksum of the values to which they are added."""
    arrays: dict[str, NDArray[Any]] = {_BASE: np.array(base)}
    for position, difference in differences.items():
        if difference.ndim < 2:
            arrays[f"{position}"] = difference
            continue
        scale = np.abs(difference).max(axis=tuple(range(difference.ndim - 1))) / 127
        arrays[f"{position}.scale"] = scale.astype(np.float32)
        arrays[f"{position}"] = np.round(difference / np.where(scale, scale, 1)).astype(np.int8)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def _read_differences(path: Path) -> tuple[dict[int, NDArray[np.float32]], int]:
    """The differences and the checksum that `_write_differences` wrote."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            differences = {}
            for position in sorted(int(name) for name in arrays.files if name.isdecimal()):
                value = arrays[f"{position}"].astype(np.float32)
                differences[position] = value * arrays[f"{position}.scale"] if value.ndim > 1 else value
            return differences, int(arrays[_BASE])
    except DAMAGED as error:
        raise ConfigurationError(f"{path}: damaged: {error}") from error


def checksum(values: Iterable[NDArray[Any]]) -> int:
    """CRC-32 of arrays one after the other."""
    crc = 0
    for value in values:
        crc = zlib.crc32(value.tobytes(), crc)
    return crc


def load_extractor(folder: Path | str, weights: str | None, dtype: str = "float32") -> keras.Model:
    """The feature extractor of a run, up to the blocks it reads: Inception with `weights` and the run's trained part,
    to compute in `dtype` as `build_extractor` takes it.

    Raises:
        ConfigurationError: the run was trained on other weights, or on features of another shape; or as
            `build_extractor` and `load_extractor_part`.
        StoreError: the file of `weights` cannot be read.
    """
    from caplet_export.inception import build_extractor

    if weights is not None:
        require_encoder_weights(Path(folder), weights_digest(weights), f"--encoder-weights {weights}")
    model = load_config(Path(folder) / "config.json").model
    extractor = build_extractor(weights, dtype, model.blocks)
    require_shape(model, extractor.output_shape[1:], folder)
    trained = Path(folder) / EXTRACTOR
    if trained.exists():
        load_extractor_part(extractor, trained)
    return extractor
