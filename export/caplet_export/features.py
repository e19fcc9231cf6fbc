"""Run InceptionV3 without its classifier once over every photo, and store the features on disk.

A store is a folder::

    store.json    the source of the features (digests of weights, view, block, shape, precision); written first, not
                  changed
    names.txt     image names, one a line, in row order
    rows.f16      float16 rows, locations × channels each, in the order of names.txt
    skipped.txt   images that could not be read, one a line; written last, so a store without it is not finished

A row counts only once its name stands in `names.txt` with a newline after it, and names are appended after their rows
have reached the disk. So a run that dies at any byte loses at most the batch in flight: the next run drops what lies
beyond the last complete name and goes on. Readers map `rows.f16`, so the features are never in memory all at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ImageError
from caplet_export.errors import StoreError
from caplet_export.outputs import lock_path, unlock_path, wait_for_disk, write_whole
from caplet_export.views import apply_view

_FORMAT = 1
_NAMES, _ROWS, _SKIPPED = "names.txt", "rows.f16", "skipped.txt"


@dataclass(frozen=True)
class StoreSource:
    """What features were made from; two stores with equal sources hold comparable features."""

    weights: str
    """sha256 of the Inception weights."""
    view: str = "plain"
    """Which view of the photo, see `caplet_export.views`."""
    layer: str = "mixed10"
    """The Inception block whose output is stored: the features, or the input of the blocks to be fine-tuned."""
    locations: int = 64
    channels: int = 2048
    precision: str | None = None
    """Precision of the computation, `float32` or `bfloat16`; None where it is not recorded (up to release 0.9)."""
    extractor: str | None = None
    """sha256 of the Inception blocks that a run trained and that were used, see `extractor_part.extractor_digest`; None
    for the Inception weights as they are."""

    @property
    def made_by(self) -> str:
        """What tells the extractor from others: digests of its weights, and of the blocks that a run trained."""
        return f"{self.weights} {self.extractor}" if self.extractor else self.weights


class StoredFeatures(ABC):
    """Features by photo name, read from disk on access.

    Attributes:
        folder: where they are; for several stores read as one, the folder of the first.
        source: what they were made from.
        skipped: photos that could not be read when they were made.
    """

    folder: Path
    source: StoreSource
    skipped: frozenset[str]

    @abstractmethod
    def __contains__(self, name: object) -> bool: ...

    @abstractmethod
    def __getitem__(self, name: str) -> NDArray[np.float16]:
        """Features float16 [locations, channels] of a photo. Raises a StoreError if there are none."""

    def gather(self, names: Sequence[str]) -> NDArray[np.float16]:
        """Features float16 [len(names), locations, channels] of several images."""
        return np.stack([self[name] for name in names])

    def readable(self, names: Sequence[str]) -> list[str]:
        """Those of `names` whose images could be read when features were extracted."""
        return [name for name in names if name not in self.skipped]

    def batches(self, names: Sequence[str], size: int) -> Iterator[NDArray[np.float16]]:
        """Features float16 [N, locations, channels] of several images, `size` images at a time."""
        for first in range(0, len(names), size):
            yield self.gather(names[first : first + size])


class FeatureStore(StoredFeatures):
    """Read-only view of a feature store.

    `store[name]` is a float16 array of shape [locations, channels], read from disk on access.

    Raises:
        StoreError: no store there, its extraction has not finished, or its files do not fit together.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.source = _read_source(self.folder)
        if not (self.folder / _SKIPPED).exists():
            raise StoreError(f"{self.folder}: extraction has not finished; run `caplet-export features` again")
        self.skipped = frozenset(_lines(self.folder / _SKIPPED))
        self.names = _lines(self.folder / _NAMES)
        self._rows_by_name = {name: row for row, name in enumerate(self.names)}
        shape = (len(self.names), self.source.locations, self.source.channels)
        path = self.folder / _ROWS
        size = path.stat().st_size if path.exists() else 0
        if size < int(np.prod(shape)) * 2:
            raise StoreError(f"{path}: {size} bytes, fewer than its {len(self.names)} names need; extract it again")
        self._rows: NDArray[np.float16] = (
            np.memmap(path, np.float16, "r", shape=shape) if self.names else np.empty(shape, np.float16)
        )

    def __contains__(self, name: object) -> bool:
        return name in self._rows_by_name

    def __getitem__(self, name: str) -> NDArray[np.float16]:
        if name not in self._rows_by_name:
            raise StoreError(f"{self.folder}: no features of {name}; run `caplet-export features` again")
        row: NDArray[np.float16] = self._rows[self._rows_by_name[name]]
        return row


def whole_in_another_precision(stores: Mapping[Path, StoreSource], names: Sequence[str]) -> list[FeatureStore]:
    """The stores at these folders, if all are whole and their sources differ from those asked for in precision alone.

    Args:
        stores: the source asked for, by folder.
        names: the photos that a whole store holds, as far as they could be read.

    Returns:
        the stores; none if a store is not whole or differs in more, or if all have the precision asked for.
    """
    try:
        found = [(FeatureStore(folder), source) for folder, source in stores.items()]
    except StoreError:
        return []
    alike = all(replace(store.source, precision=source.precision) == source for store, source in found)
    others = any(store.source.precision not in (None, source.precision) for store, source in found)
    whole = all(name in store or name in store.skipped for store, _ in found for name in names)
    return [store for store, _ in found] if alike and others and whole else []


class JoinedStores(StoredFeatures):
    """Stores of the same photos read as one, with their channels side by side in the order given."""

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        first = stores[0]
        self.folder = first.folder
        self.source = replace(
            first.source,
            layer=" ".join(store.source.layer for store in stores),
            channels=sum(store.source.channels for store in stores),
        )
        self.skipped = frozenset().union(*(store.skipped for store in stores))
        self._stores = stores

    def __contains__(self, name: object) -> bool:
        return all(name in store for store in self._stores)

    def __getitem__(self, name: str) -> NDArray[np.float16]:
        return np.concatenate([store[name] for store in self._stores], axis=-1)


def open_store(folder: Path, blocks: Sequence[str], view: str) -> StoredFeatures:
    """The stored outputs of these blocks for one view of the photos, read as one store.

    Raises:
        StoreError: one of them is missing, unfinished or damaged, holds another block than its name says, or was made
            with other Inception weights.
    """
    stores = [FeatureStore(folder / f"{block}-{view}") for block in blocks]
    for block, store in zip(blocks, stores, strict=True):
        if store.source.layer != block:
            raise StoreError(f"{store.folder}: stored at block {store.source.layer}, not {block}")
        if store.source.made_by != stores[0].source.made_by:
            raise StoreError(f"{store.folder}: stored with other Inception weights than {stores[0].folder}")
    return stores[0] if len(stores) == 1 else JoinedStores(stores)


class FeatureWriter:
    """Appends rows to a store, which it creates, or continues where a run that died left off.

    Raises:
        StoreError: the store is of another source, is damaged or cannot be written.
        ExportError: another process is writing to it.
    """

    def __init__(self, folder: Path | str, source: StoreSource) -> None:
        self.folder = Path(folder)
        self._row_bytes = source.locations * source.channels * 2
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock_path(self.folder)
            if (self.folder / "store.json").exists():
                have = _read_source(self.folder)
                have = replace(have, precision=have.precision or source.precision)
                if have != source:
                    ours = asdict(source)
                    theirs = ", ".join(
                        f"{name}={value or 'none'}" for name, value in asdict(have).items() if value != ours[name]
                    )
                    raise StoreError(f"{self.folder}: holds features of another source, {theirs}; use another folder")
            else:
                known = {name: value for name, value in asdict(source).items() if value is not None}
                write_whole(self.folder / "store.json", json.dumps({"format": _FORMAT, **known}))
            self.names = _lines(self.folder / _NAMES)
            rows = self.folder / _ROWS
            have_rows = (rows.stat().st_size if rows.exists() else 0) // self._row_bytes
            del self.names[have_rows:]
            listed = "".join(f"{name}\n" for name in self.names).encode("utf-8", "surrogateescape")
            self._rows = _open_at(rows, len(self.names) * self._row_bytes)
            self._names = _open_at(self.folder / _NAMES, len(listed))

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._rows)
        os.close(self._names)
        unlock_path(self.folder)

    def begin(self) -> None:
        """Mark the store as unfinished, which a killed process then leaves behind. Raises a StoreError."""
        with _writing(self.folder):
            (self.folder / _SKIPPED).unlink(missing_ok=True)

    def append(self, names: Sequence[str], features: NDArray[np.float16]) -> None:
        """Write a batch of features [len(names), locations, channels]: its names only once its rows are on disk.

        Raises:
            StoreError: the disk is full or fails; the store still holds every batch before this one.
        """
        with _writing(self.folder):
            _write_all(self._rows, np.ascontiguousarray(features, np.float16).tobytes())
            wait_for_disk(self._rows)
            _write_all(self._names, "".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape"))
            wait_for_disk(self._names)
        self.names.extend(names)

    def finish(self, skipped: Iterable[str]) -> None:
        """Mark the store as whole, without the images `skipped`. Raises a StoreError if the disk is full or fails."""
        with _writing(self.folder):
            write_whole(self.folder / _SKIPPED, "".join(f"{name}\n" for name in skipped))


def extract(
    stores: Mapping[Path, StoreSource],
    names: Iterable[str],
    load: Callable[[str], NDArray[np.uint8]],
    run: Callable[[NDArray[np.uint8]], Sequence[NDArray[np.floating[Any]]]],
    *,
    batch_size: int = 16,
) -> Iterator[tuple[str, str | None]]:
    """Extract features of every image in `names` that one of the stores does not hold yet.

    An unreadable image never stops the others.

    Args:
        stores: their sources by folder: several blocks of one view of the photos, which one pass computes.
        names: the images; one that is named twice counts once.
        load: function from a name to pixels uint8 [299,299,3]. It raises caplet's ImageError for a photo that is to be
            left out; any other error ends the extraction, and leaves the stores unfinished.
        run: function from a batch of pixels [N,299,299,3] to features [N,locations,channels] for each store.
        batch_size: images that `run` gets at once.

    Yields:
        `(name, None)` for each image that is in the stores, and `(name, reason)` for each that cannot be read.

    Raises:
        StoreError: a store is of another source, is damaged or cannot be written.
        ExportError: another process is writing to a store.
    """
    (view,) = {source.view for source in stores.values()}
    with ExitStack() as stack:
        writers = [stack.enter_context(FeatureWriter(folder, source)) for folder, source in stores.items()]
        for writer in writers:  # only now, when none of them has been refused
            writer.begin()
        held = [frozenset(writer.names) for writer in writers]
        done = frozenset.intersection(*held)
        batch: list[tuple[str, NDArray[np.uint8]]] = []
        skipped: list[str] = []

        def flush() -> Iterator[tuple[str, None]]:
            if batch:
                outputs = run(np.stack([image for _, image in batch]))
                for writer, known, features in zip(writers, held, outputs, strict=True):
                    # A run that died between two stores left one of them a batch ahead.
                    new = [index for index, (name, _) in enumerate(batch) if name not in known]
                    writer.append([batch[index][0] for index in new], np.asarray(features, np.float16)[new])
            for name, _ in batch:
                yield name, None
            batch.clear()

        for name in dict.fromkeys(names):
            if name in done:
                yield name, None
                continue
            try:
                pixels = load(name)
            except ImageError as error:
                skipped.append(name)
                yield name, str(error)
                continue
            batch.append((name, apply_view(view, name, pixels)))
            if len(batch) == batch_size:
                yield from flush()
        yield from flush()
        for writer in writers:
            writer.finish(skipped)


def held_by_all(stores: Iterable[Path]) -> frozenset[str]:
    """The images that all of these stores hold, whole or not."""
    return frozenset.intersection(*(frozenset(_lines(folder / _NAMES)) for folder in stores))


def weights_digest(weights: str) -> str:
    """sha256 of a weights file; `imagenet` (Keras' own download) as it is. Raises a StoreError if it cannot be read."""
    if weights == "imagenet":
        return weights
    try:
        with open(weights, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise StoreError(f"{weights}: {error.strerror}") from error


def _read_source(folder: Path) -> StoreSource:
    path = folder / "store.json"
    try:
        raw = json.loads(path.read_text())
        if raw.pop("format") == _FORMAT:
            return StoreSource(**raw)
    except FileNotFoundError as error:
        raise StoreError(f"{folder}: no feature store here; run `caplet-export features` first") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged ({error}); delete {folder} and extract again") from error
    raise StoreError(f"{path}: made by another version of caplet-export; delete {folder} and extract again")


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    # A last line without its newline is a name whose writing was cut short: its row does not count.
    return path.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]


def _open_at(path: Path, size: int) -> int:
    # Without O_BINARY, Windows would take the bytes for text, and write two for a newline.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    os.ftruncate(descriptor, size)
    os.lseek(descriptor, size, os.SEEK_SET)
    return descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Within it, an OSError becomes a StoreError about the folder."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{folder}: cannot write features: {error.strerror or error}") from error
