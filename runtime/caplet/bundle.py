"""Find a model directory, check it file by file, and read its vocabulary."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from caplet.errors import NO_MEMORY, ArgumentError, BundleError, BundleNotFoundError
from caplet.graphfile import check_self_contained
from caplet.manifest import FileEntry, Manifest, parse_manifest
from caplet.prefetch import beside

DEFAULT_BUNDLE = "flickr8k-gru-int8"
MODEL_VARIABLE = "CAPLET_MODEL"
MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 4 * 2**20
_LARGEST_FILE = 2**31 - 1  # protobuf's own limit for a graph
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # what Git LFS leaves in a file's place begins so
_LFS_LARGEST = 1023  # bytes of a pointer, by the specification


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest, files and vocabulary have been checked.

    Attributes:
        path: the directory, absolute.
        digest: sha256 of manifest.json; as that holds the hashes of what captions come from, it identifies the model.
        manifest: what the bundle says about itself.
        words: the vocabulary; a word's position is its id. The first four are padding, start, end, unknown.
        verified: whether every file's hash was compared.
    """

    path: Path
    digest: str
    manifest: Manifest = field(repr=False)
    words: tuple[str, ...] = field(repr=False)
    verified: bool

    @property
    def encoder(self) -> Path:
        """The encoder graph."""
        return self.path / self.manifest.encoder_file

    @property
    def decoder(self) -> Path:
        """The graph of one decoder step."""
        return self.path / self.manifest.decoder_file


def load_bundle(path: str | os.PathLike[str] | None = None, *, verify: bool = True) -> Bundle:
    """Find a bundle and check all of it except the insides of the graphs.

    Args:
        path: the bundle's directory; None for the one in the environment variable CAPLET_MODEL, or else the one that
            comes with caplet.
        verify: compare every file with its size and sha256 in the manifest. The vocabulary, and that neither it nor the
            graphs lie outside the directory, are checked in any case.

    Raises:
        BundleNotFoundError: there is no such directory, or no manifest in it.
        ArgumentError: `path` is not a path at all.
        BundleError: anything else that is wrong, with the file's path.
    """
    root = locate_bundle(path)
    try:
        root = root.absolute()  # the current folder may be another one when a graph is opened again
        content = _read(root, MANIFEST, _LARGEST_MANIFEST)
        manifest = parse_manifest(content, str(root / MANIFEST))
        graphs = (manifest.encoder_file, manifest.decoder_file)
        for name, entry in manifest.files.items():
            if name in graphs:
                _check_graph(root, name, entry, verify=verify)
            elif verify:
                _check_hash(root, name, entry)
        words = _read_vocabulary(root, manifest)
    except OSError as error:
        raise _unreadable(root, error) from error
    except MemoryError as error:
        raise BundleError(str(root), NO_MEMORY, "free some") from error
    return Bundle(root, hashlib.sha256(content).hexdigest(), manifest, words, verify)


def locate_bundle(path: str | os.PathLike[str] | None = None) -> Path:
    """The directory that `load_bundle` reads.

    Raises:
        BundleNotFoundError: there is none.
        BundleError: it cannot be read.
        ArgumentError: `path` is not a path at all.
    """
    named = path if path is not None else os.environ.get(MODEL_VARIABLE) or None
    source = f" (from {MODEL_VARIABLE})" if path is None and named else ""
    try:
        root = default_bundle() if named is None else Path(os.fsdecode(named))
    except TypeError:
        raise ArgumentError("model", f"{named!r} is not a path", "give the directory of a bundle") from None
    if not os.path.isdir(root):
        raise BundleNotFoundError(str(root), f"no such directory{source}", "give a directory with a manifest.json")
    try:
        (root / MANIFEST).stat()
    except FileNotFoundError:
        remedy = "give the directory of a caplet bundle"
        raise BundleNotFoundError(str(root), f"has no {MANIFEST}{source}", remedy) from None
    except OSError as error:
        raise _unreadable(root, error) from error
    return root


def _unreadable(root: Path, error: OSError) -> BundleError:
    subject = str(error.filename or root)
    return BundleError(subject, f"cannot be read ({error.strerror or error})", "check its permissions")


def _damaged(path: Path, cause: str) -> BundleError:
    return BundleError(str(path), cause, "get the bundle again")


def default_bundle() -> Path:
    """The bundle that comes with caplet: inside an installed wheel, or in the repository of an editable install.

    Raises BundleError if it cannot be looked for, as when too many files are open; `Path.glob` would find nothing.
    """
    package = Path(__file__).resolve().parent
    models = package / "models"
    try:
        found = models.iterdir() if models.is_dir() else ()
        packaged = sorted(folder for folder in found if (folder / MANIFEST).is_file())
    except OSError as error:
        raise _unreadable(models, error) from error
    return packaged[0] if packaged else package.parents[1] / "models" / DEFAULT_BUNDLE


def _inside(root: Path, name: str) -> Path:
    """The real path of the bundle's file `name`. Raises BundleError unless it is a file inside the bundle.

    It may also lie where huggingface_hub keeps the files of a bundle that it downloaded.
    """
    path = root / name
    try:
        real = path.resolve()  # not strictly: on some RAM disks, Windows cannot say what a path really is
        status = real.stat()
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None
    except RuntimeError:  # a loop of links, before Python 3.13
        raise _damaged(path, "is a loop of links") from None
    folder = root.resolve()
    if not any(real.is_relative_to(place) for place in (folder, *_hub_blobs(folder))):
        raise BundleError(str(path), "is a link that leads out of the bundle", "copy the file into the bundle")
    if not stat.S_ISREG(status.st_mode):
        raise _damaged(path, "is not a file")
    if status.st_size <= _LFS_LARGEST:
        with real.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise BundleError(str(path), "is a Git LFS pointer, not the file itself", "run `git lfs pull`")
    return real


def _hub_blobs(folder: Path) -> tuple[Path, ...]:
    """The folders that links lead to from `folder`, if that is in a cache of huggingface_hub's.

    There, models--NAME/snapshots/REVISION/FILE is a link to models--NAME/blobs/HASH, which may be one to blobs/HA/HASH
    beside the models.
    """
    for parent in folder.parents:
        model = parent.parent
        if parent.name == "snapshots" and model.name.startswith("models--"):
            return model / "blobs", model.parent / "blobs"
    return ()


def _read(root: Path, name: str, limit: int = _LARGEST_FILE) -> bytes:
    path = _inside(root, name)
    size = path.stat().st_size
    with path.open("rb") as file:
        if size > limit:
            raise _damaged(root / name, f"is larger than {limit} bytes")
        content = file.read(size)  # Python allocates as much memory as is asked for
    if not content:
        raise _damaged(root / name, "is empty")
    return content


def _check_graph(root: Path, name: str, entry: FileEntry, *, verify: bool) -> None:
    """Check that a graph uses no other files and, if `verify`, its hash. It is read only once, as graphs are large."""
    if not verify:
        check_self_contained(_read(root, name), str(root / name))
        return
    _check_size(root, name, entry)
    content = _read(root, name)

    with beside(lambda: hashlib.sha256(content).hexdigest()) as digest:  # which releases the GIL
        try:
            check_self_contained(content, str(root / name))
        finally:  # an altered file is reported as altered, whatever else is wrong with it
            _compare_hash(root, name, entry, digest())


def _check_hash(root: Path, name: str, entry: FileEntry) -> None:
    path = _check_size(root, name, entry)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            digest.update(chunk)
    _compare_hash(root, name, entry, digest.hexdigest())


def _check_size(root: Path, name: str, entry: FileEntry) -> Path:
    path = _inside(root, name)
    size = path.stat().st_size
    if size != entry.bytes:
        raise _damaged(root / name, f"has {size} bytes, the manifest says {entry.bytes}")
    return path


def _compare_hash(root: Path, name: str, entry: FileEntry, found: str) -> None:
    if found != entry.sha256:
        raise _damaged(root / name, "has been altered (its sha256 is not the manifest's)")


def _read_vocabulary(root: Path, manifest: Manifest) -> tuple[str, ...]:
    path = root / manifest.vocabulary_file
    try:
        text = _read(root, manifest.vocabulary_file).decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(path, "is not UTF-8") from None
    words = tuple(text.removesuffix("\n").split("\n"))
    if len(words) != manifest.vocabulary_size:
        raise _damaged(path, f"has {len(words)} words, the manifest says {manifest.vocabulary_size}")
    if words[:4] != manifest.specials:
        raise _damaged(path, f"starts with {' '.join(words[:4])!r}, the manifest says {' '.join(manifest.specials)!r}")
    seen: set[str] = set()
    for line, word in enumerate(words, start=1):
        if not word or not word.isprintable() or " " in word:
            raise _damaged(path, f"line {line} is not one printable word")
        if word in seen:
            raise _damaged(path, f"has the word {word!r} twice")
        seen.add(word)
    return words
