"""The part of Inception that a run trains along with its captioner: a file of its run folder."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caplet_export.errors import ConfigurationError, in_one_line
from caplet_export.inputs import DAMAGED
from caplet_export.outputs import whole_file

if TYPE_CHECKING:
    import keras

EXTRACTOR = "extractor.npz"
_BASE = "base"


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
        if path.exists() and not _read_differences(path)[0].keys() <= self._before.keys():
            cause = "trained Inception from a lower block on; set the same train.extractor_layer"
            raise ConfigurationError(f"{run}: {cause}")
        load_extractor_part(extractor, run)

    def save(self, values: Sequence[Any], path: Path) -> None:
        """Write values of the trained variables, in the order of `trained`. Raises OSError."""
        differences = {
            position: np.asarray(value, np.float32) - self._before[position]
            for position, value in zip(self._positions, values, strict=True)
        }
        _write_differences(differences, checksum(self._before.values()), path)


def load_extractor_part(extractor: keras.Model, run: Path) -> None:
    """Add the differences that a run trained to the weights that it began with, if it trained any of Inception.

    Raises:
        ConfigurationError: its file is damaged, its arrays have other shapes than this extractor's, or the extractor
            holds other weights than the run began with.
    """
    path = run / EXTRACTOR
    if not path.exists():
        return
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


def average_extractor_parts(runs: Sequence[Path], folder: Path) -> None:
    """Give the run in `folder` the mean of the trained parts of `runs`, which began with the same Inception weights.

    Raises:
        ConfigurationError: one of them is damaged, or trained from other weights or other blocks than the first.
    """
    paths = [run / EXTRACTOR for run in runs]
    parts = [_read_differences(path) for path in paths]
    (first, base), *others = parts
    for path, (differences, other) in zip(paths[1:], others, strict=True):
        if other != base or differences.keys() != first.keys():
            raise ConfigurationError(f"{path}: trained from other Inception weights or blocks than {paths[0]}")
    mean = {position: np.mean([part[position] for part, _ in parts], axis=0) for position in first}
    _write_differences(mean, base, folder / EXTRACTOR)


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
        raise ConfigurationError(f"{path}: damaged: {in_one_line(error)}") from error


def checksum(values: Iterable[NDArray[Any]]) -> int:
    """CRC-32 of arrays one after the other."""
    crc = 0
    for value in values:
        crc = zlib.crc32(value.tobytes(), crc)
    return crc


def extractor_digest(run: Path) -> str | None:
    """sha256 of the part of Inception that a run trained, or took over, as hexadecimal digits; None if it has none."""
    path = run / EXTRACTOR
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def copy_extractor_part(run: Path, folder: Path) -> None:
    """Give the run in `folder` the part of Inception that `run` trained, if it has one. Raises OSError."""
    if (run / EXTRACTOR).exists():
        with whole_file(folder / EXTRACTOR) as temporary:
            shutil.copyfile(run / EXTRACTOR, temporary)
