"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from caplet.inputs import identity
from caplet.output import put_in_place
from caplet_export.errors import ExportError

ATTENTION, CHART = "attention.jpg", "ablations.png"
"""The pictures of a bundle's card."""
Kind = tuple[frozenset[str], frozenset[str]]
"""A kind of folder that verbs write: the files that are always in it, by which it is known, and those that may be."""
GRAPHS: Kind = (
    frozenset({"encoder.onnx", "decoder.onnx", "vocabulary.txt"}),
    frozenset({"parity.json", "quantization.json", "manifest.json", "README.md", ATTENTION, CHART, "golden"}),
)
"""Folders of graphs, and bundles: both can be made again in minutes."""
RUN: Kind = (
    frozenset({"config.json", "vocabulary.txt", "decoder.weights.h5"}),
    frozenset({"extractor.npz", "stages.json", "history.json", "curves.png", "resume.npz"}),
)


def check_folder(target: Path, kind: Kind, inputs: Iterable[Path] = ()) -> Path:
    """Where `whole_folder` would write `target`, with links followed; for verbs to ask before their work begins.

    Raises:
        ExportError: nothing can be written there, or it would replace something else than an earlier result: a file,
            the working folder, one of the `inputs`, a folder around these, or a folder that is not of this kind.
    """
    resolved = check_place(target)
    if _leads_into(Path.cwd(), resolved):
        raise ExportError(f"{target}: the working folder, or one around it, is not replaced")
    for source in inputs:
        if _leads_into(_followed(source), resolved):
            raise ExportError(f"{target}: would replace what is read, {source}")
    if not resolved.exists():
        return resolved
    if not resolved.is_dir():
        raise ExportError(f"{target}: is a file, not a folder")
    odd = _odd_name(resolved, kind)
    if odd:
        raise ExportError(f"{target}: holds what caplet-export does not write there ({odd}), so it is not replaced")
    return resolved


def _odd_name(folder: Path, kind: Kind) -> str | None:
    """A name in a folder because of which it is not to be replaced; None if it may be. If it has all files that are
    always in its kind, that is a name that does not belong to the kind; otherwise, any name.
    """
    names = sorted(path.name for path in folder.iterdir())
    always, maybe = kind
    if not always <= set(names):
        return names[0] if names else None
    # A killed process leaves what it was writing under a name with a dot, see `whole_file`.
    ours = always | maybe | {f".{name}" for name in always | maybe}
    photos = sorted(path.name for path in (folder / "golden").glob("*") if path.suffix != ".png")
    odd = [*(name for name in names if name not in ours), *(f"golden/{name}" for name in photos)]
    return odd[0] if odd else None


def check_file(target: Path, keys: frozenset[str], inputs: Iterable[Path] = ()) -> None:
    """Raise an ExportError if a file is not to be written at `target`; for verbs to ask before their work begins.

    Args:
        target: the file; one that stands there is replaced only if it is empty, or was written by the verb.
        keys: a file that holds a JSON object with these keys, as a whole or in its first line, was written by the verb.
        inputs: files that are read, and so must not be replaced.
    """
    resolved = check_place(target)
    if resolved.is_dir():
        raise ExportError(f"{target}: is a folder, not a file")
    if any(_leads_into(_followed(source), resolved) for source in inputs):
        raise ExportError(f"{target}: would replace what is read")
    if resolved.exists() and not _has_keys(resolved, keys):
        raise foreign(target)


def foreign(target: Path) -> ExportError:
    """The error for a file of somebody else's at the place of a result."""
    return ExportError(f"{target}: not a file that caplet-export writes here, so it is not replaced")


def _has_keys(path: Path, keys: frozenset[str]) -> bool:
    """Whether a file is empty, or holds a JSON object with these keys, as a whole or in its first line."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    for text in (content, content.partition(b"\n")[0]):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and keys <= found.keys():
            return True
    return not content


def _followed(path: Path) -> Path:
    """Where symbolic links lead. Unlike `Path.resolve`, no error if that is a circle, which `check_place` tells."""
    return Path(os.path.realpath(path))


def _leads_into(path: Path, place: Path) -> bool:
    """Whether a path without links is that of a place or of something in it, in whatever case: macOS takes `Run` for
    `run`.
    """
    found = identity(place)
    return path.is_relative_to(place) or (found is not None and found in map(identity, (path, *path.parents)))


def check_place(target: Path) -> Path:
    """Where `target` is, with symbolic links followed. Raises an ExportError if nothing can be written there."""
    resolved = _followed(target)
    if resolved.is_symlink():
        raise ExportError(f"{target}: cannot write: symbolic links that lead in a circle")
    place = next((parent for parent in resolved.parents if parent.exists()), resolved)
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ExportError(f"{target}: cannot write: {place} is not a folder that can be written to")
    return resolved


_LOCKED: dict[tuple[int, int], int] = {}
"""Descriptors of the folders and files that this process has locked, by device and inode."""


def lock_path(path: Path) -> None:
    """Lock a folder or file, which exists, against other processes until `unlock_path` or the end of this one; not on
    Windows, nor where the file system has no locks. Raises an ExportError if another process has locked it.
    """
    if sys.platform == "win32":
        return
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    status = os.fstat(descriptor)
    place = status.st_dev, status.st_ino
    try:
        if place not in _LOCKED:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _LOCKED[place] = descriptor
    except BlockingIOError as error:
        raise ExportError(f"{path}: another caplet-export is writing to it; wait for it to end") from error
    except OSError:  # a file system without locks
        pass
    finally:
        if _LOCKED.get(place) != descriptor:
            os.close(descriptor)


def unlock_path(path: Path) -> None:
    """Let other processes write to what `lock_path` has locked."""
    status = path.stat()
    descriptor = _LOCKED.pop((status.st_dev, status.st_ino), None)
    if descriptor is not None:
        os.close(descriptor)


def beside(target: Path, use: str) -> Path:
    """A hidden place next to `target`, resolved, for work on it: a name that nobody else uses, and always the same one,
    so that the next process clears what a killed one left.
    """
    return target.with_name(f".{target.name}.caplet-export.{use}")


@contextmanager
def whole_folder(target: Path, kind: Kind, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends without an error, and when all of its
    files have reached the disk.

    A folder that stood at `target` before stays until then, and for good if the block fails.

    Raises:
        ExportError: the folder cannot be written, or is not to be replaced (see `check_folder`).
    """
    asked, target = target, check_folder(target, kind, inputs)
    temporary, old = (beside(target, state) for state in ("new", "old"))
    try:
        if temporary.exists():
            lock_path(temporary)  # lest it be emptied under another process that writes the same folder
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            lock_path(temporary)
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    _flush(path)
            unlock_path(temporary)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                put_in_place(target, old)
            put_in_place(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            if old.exists() and not target.exists():  # stopped between the two, perhaps in a process that was killed
                put_in_place(old, target)
            shutil.rmtree(temporary, ignore_errors=True)
    except ExportError:  # a StoreError is an OSError too
        raise
    except OSError as error:
        raise ExportError(f"{asked}: cannot write: {error.strerror or error}") from error


def _flush(path: Path) -> None:
    """Wait until a file has reached the disk, as `wait_for_disk`."""
    with open(path, "rb+") as file:  # Windows flushes only what may be written to
        wait_for_disk(file.fileno())


def wait_for_disk(descriptor: int) -> None:
    """Wait until what was written has reached the disk; not where the file system has no such thing, as some that lead
    over a network. Raises OSError.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise


@contextmanager
def whole_files(*paths: Path) -> Iterator[Sequence[Path]]:
    """The paths of temporary files beside `paths`, of the same suffixes, that take their places when the block ends.

    They do so one right after the other, when all of them have reached the disk. Files that were at `paths` before stay
    until then, and for good if the block fails, which leaves no temporary file. Only an interruption between the first
    of them and the last leaves those that are still to come, under their names with a dot. Raises OSError.
    """
    # Without the number of the process, so that the next one overwrites what a killed one left.
    temporaries = [path.with_name(f".{path.name}") for path in paths]
    try:
        yield temporaries
        for temporary in temporaries:
            _flush(temporary)
        for temporary, path in zip(temporaries, paths, strict=True):
            put_in_place(temporary, path)
    except BaseException as error:
        if temporaries[0].exists():  # else the first is in its place, and the others have to follow
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.strerror and error.filename is None:  # as of a full disk
            error.filename = str(paths[0])
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """`whole_files` for one file."""
    with whole_files(path) as (temporary,):
        yield temporary


def require_space(folder: Path, size: int) -> None:
    """Raise an OSError if `size` bytes do not fit: HDF5, which writes weights, ends the process on a full disk."""
    if shutil.disk_usage(folder).free < size + 1e6:
        raise OSError(errno.ENOSPC, f"no room for the {max(size / 1e6, 1):.0f} MB that are to be written")


def write_whole(path: Path, text: str) -> None:
    """Write a file in UTF-8; the old one stays until the new one is whole. Raises OSError."""
    # File names may hold bytes that are not UTF-8, which Python keeps as surrogates.
    with whole_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))
