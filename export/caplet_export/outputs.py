"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from caplet_export.errors import ExportError

Kind = tuple[frozenset[str], frozenset[str]]
"""What verbs write into a folder: the files that are always there, by which it is known, and those that may be."""
GRAPHS: Kind = (
    frozenset({"encoder.onnx", "decoder.onnx", "vocabulary.txt"}),
    frozenset({"parity.json", "quantization.json", "manifest.json", "README.md", "attention.jpg", "golden"}),
)
"""Folders of graphs, and bundles, which can be made again in minutes."""
RUN: Kind = (
    frozenset({"config.json", "vocabulary.txt", "decoder.weights.h5"}),
    frozenset({"extractor.npz", "stages.json", "history.json", "curves.png", "resume.npz"}),
)


def check_folder(target: Path, kind: Kind, inputs: Iterable[Path] = ()) -> Path:
    """Where `whole_folder` would write `target`, links followed; for verbs to ask before their work begins.

    Raises:
        ExportError: something stands there that is not to be replaced: a file, the working folder, one of the `inputs`
            or a folder around one, or a folder that no verb that writes this kind has made.
    """
    resolved = check_place(target)
    if Path.cwd().is_relative_to(resolved):
        raise ExportError(f"{target}: the working folder, or one around it, is not replaced")
    for source in inputs:
        if _followed(source).is_relative_to(resolved):
            raise ExportError(f"{target}: would replace what is read, {source}")
    if not resolved.exists():
        return resolved
    if not resolved.is_dir():
        raise ExportError(f"{target}: is a file, not a folder")
    foreign = _foreign(resolved, kind)
    if foreign:
        raise ExportError(f"{target}: holds what caplet-export does not write there ({foreign}), so it is not replaced")
    return resolved


def _foreign(folder: Path, kind: Kind) -> str | None:
    """The first name in a folder for which it is not to be replaced: all must be of its kind, and whole."""
    names = sorted(path.name for path in folder.iterdir())
    always, maybe = kind
    if not always <= set(names):
        return names[0] if names else None
    # A killed process leaves what it was writing under a name with a dot, see `whole_file`.
    ours = always | maybe | {f".{name}" for name in always | maybe}
    photos = sorted(path.name for path in (folder / "golden").glob("*") if path.suffix != ".png")
    foreign = [*(name for name in names if name not in ours), *(f"golden/{name}" for name in photos)]
    return foreign[0] if foreign else None


def check_file(target: Path, keys: frozenset[str], inputs: Iterable[Path] = ()) -> None:
    """Raise an ExportError if a file is not to be written at `target`; for verbs to ask before their work begins.

    Args:
        target: where to; a file that stands there is replaced only if it is empty, or one that the verb has written.
        keys: of the JSON object, whole or in the first line, by which a file is known as one that the verb has written.
        inputs: files that are read.
    """
    resolved = check_place(target)
    if resolved.is_dir():
        raise ExportError(f"{target}: is a folder, not a file")
    if resolved in map(_followed, inputs):
        raise ExportError(f"{target}: would replace what is read")
    if resolved.exists() and not _has_keys(resolved, keys):
        raise foreign(target)


def foreign(target: Path) -> ExportError:
    """The error for a file that is somebody's own, where a result was to go."""
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
    """Where symbolic links lead. Unlike `Path.resolve`, no error where that is a circle, which `check_place` tells."""
    return Path(os.path.realpath(path))


def check_place(target: Path) -> Path:
    """Where `target` is, symbolic links followed; whatever stands there. Raises an ExportError if it cannot be made."""
    resolved = _followed(target)
    if resolved.is_symlink():
        raise ExportError(f"{target}: cannot write: symbolic links that lead in a circle")
    place = next((parent for parent in resolved.parents if parent.exists()), resolved)
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ExportError(f"{target}: cannot write: {place} is not a folder that can be written to")
    return resolved


@contextmanager
def whole_folder(target: Path, kind: Kind, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends without an error.

    What stood at `target` before stays until then, and for good if the block fails.

    Raises:
        ExportError: the folder cannot be written, or is not to be replaced (see `check_folder`).
    """
    asked, target = target, check_folder(target, kind, inputs)
    # Names that nobody else uses, and always the same: what a killed process has left is cleared by the next.
    temporary, old = (target.with_name(f".{target.name}.caplet-export.{state}") for state in ("new", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.replace(target, old)
                try:
                    os.replace(temporary, target)
                except OSError:
                    os.replace(old, target)
                    raise
            else:
                os.replace(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{asked}: cannot write: {error.strerror or error}") from error


@contextmanager
def whole_files(*paths: Path) -> Iterator[Sequence[Path]]:
    """The paths of temporary files beside `paths`, of the same suffixes, that take their places when the block ends.

    They do so one right after the other, when all of them have reached the disk. What stood at `paths` before stays
    until then, and for good if the block fails, which leaves no temporary file. Raises OSError.
    """
    # Without the process' number: what a killed process has left is overwritten by the next.
    temporaries = [path.with_name(f".{path.name}") for path in paths]
    try:
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb+") as file:  # Windows flushes only what may be written to
                os.fsync(file.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """As `whole_files`, of one file."""
    with whole_files(path) as (temporary,):
        yield temporary


def require_space(folder: Path, size: int) -> None:
    """Raise an OSError where so many bytes do not fit: on a full disk HDF5, which writes weights, ends the process."""
    if shutil.disk_usage(folder).free < size + 1e6:
        raise OSError(errno.ENOSPC, f"no room for the {size / 1e6:.0f} MB that are to be written")


def write_whole(path: Path, text: str) -> None:
    """Write a file in UTF-8; the old one stays until the new one is whole. Raises OSError."""
    # File names may hold bytes that are not UTF-8, which Python keeps as surrogates.
    with whole_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))
