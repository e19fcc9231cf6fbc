"""Reading a bundle: where it is looked for, and one clear error for everything that can be wrong with it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import caplet.bundle
from caplet.bundle import DEFAULT_BUNDLE, load_bundle
from caplet.errors import ArgumentError, BundleError, BundleNotFoundError
from command_line import needs_links, needs_pipes, needs_sparse_files
from tiny_bundle import rehash, vocabulary

Manifest = dict[str, Any]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[Manifest], Any]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_bundle_is_read(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert bundle.words[:5] == ("<pad>", "<start>", "<end>", "<unk>", "a")
    assert bundle.words == tuple(vocabulary(bundle.manifest.vocabulary_size))
    assert (bundle.encoder, bundle.decoder) == (tiny_bundle / "encoder.onnx", tiny_bundle / "decoder.onnx")
    assert bundle.manifest.decoding.beam_size == 3
    assert bundle.verified
    assert not load_bundle(tiny_bundle, verify=False).verified


def test_the_digest_names_the_model(tiny_bundle: Path, bundle: Path) -> None:
    assert load_bundle(tiny_bundle).digest == load_bundle(bundle).digest
    edit(bundle, lambda m: m.update(name="other"))
    assert load_bundle(tiny_bundle).digest != load_bundle(bundle).digest


# Where a bundle is looked for.


def test_the_argument_comes_before_the_environment(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPLET_MODEL", str(tmp_path / "nowhere"))
    assert load_bundle(str(tiny_bundle)).path == tiny_bundle
    with pytest.raises(BundleNotFoundError, match=r"nowhere.*CAPLET_MODEL"):
        load_bundle()
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(BundleNotFoundError, match=r"nowhere: has no manifest\.json \(from CAPLET_MODEL\)"):
        load_bundle()


def test_the_environment_comes_before_the_bundled_model(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPLET_MODEL", str(tiny_bundle))
    assert load_bundle().path == tiny_bundle


@pytest.mark.parametrize("layout", ["wheel", "checkout"])
def test_the_bundled_model_is_found(
    layout: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "runtime" / "caplet"
    place = package / "models" / "any" if layout == "wheel" else tmp_path / "models" / DEFAULT_BUNDLE
    shutil.copytree(tiny_bundle, place)
    monkeypatch.setenv("CAPLET_MODEL", "")
    monkeypatch.setattr(caplet.bundle, "__file__", str(package / "bundle.py"))
    assert load_bundle().path == place


def test_no_bundled_model_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPLET_MODEL", raising=False)
    monkeypatch.setattr(caplet.bundle, "__file__", str(tmp_path / "a" / "caplet" / "bundle.py"))
    with pytest.raises(BundleNotFoundError, match=rf"{DEFAULT_BUNDLE}: no such directory; "):
        load_bundle()


@pytest.mark.parametrize("name", ["nowhere", "a\0b", "x" * 5000])
def test_no_such_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no such directory") as caught:
        load_bundle(f"{tmp_path}/{name}")
    assert isinstance(caught.value, FileNotFoundError)
    assert "CAPLET_MODEL" not in str(caught.value)


@pytest.mark.parametrize("path", [123, 1.5, [], object()], ids=lambda value: type(value).__name__)
def test_what_is_not_a_path_is_an_argument_error(path: Any) -> None:
    with pytest.raises(ArgumentError, match=r"model: .* is not a path"):
        load_bundle(path)


def test_a_path_may_be_bytes(tiny_bundle: Path) -> None:
    assert load_bundle(os.fsencode(tiny_bundle)).path == tiny_bundle  # type: ignore[arg-type]


def test_a_file_or_an_empty_directory_is_not_a_bundle(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no such directory"):
        load_bundle(bundle / "encoder.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleNotFoundError, match=r"manifest\.json"):
        load_bundle(tmp_path / "empty")


# Files that are not what the manifest says.


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "vocabulary.txt", "README.md", "golden/cat.png"])
def test_a_missing_or_altered_file_is_named(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    content = (tiny_bundle / name).read_bytes()
    flipped = content[:10] + bytes([content[10] ^ 1]) + content[11:]
    for number, (change, cause) in enumerate([(flipped, "altered"), (content[:-1], "bytes"), (None, "missing")]):
        bundle = Path(shutil.copytree(tiny_bundle, tmp_path / str(number)))
        (bundle / name).unlink()
        if change is not None:
            (bundle / name).write_bytes(change)
        with pytest.raises(BundleError, match=cause) as caught:
            load_bundle(bundle)
        assert caught.value.subject == str(bundle / name)


@pytest.mark.parametrize("name", ["manifest.json", "encoder.onnx", "vocabulary.txt"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_pointer_of_git_lfs_is_called_by_its_name(verify: bool, name: str, bundle: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'5' * 64}\nsize 12345\n"
    (bundle / name).write_text(pointer, newline="\n")
    with pytest.raises(BundleError, match="is a Git LFS pointer, not the file itself; run `git lfs pull`") as caught:
        load_bundle(bundle, verify=verify)
    assert caught.value.subject == str(bundle / name)


def test_a_pointer_of_git_lfs_in_place_of_a_photo_is_called_by_its_name(bundle: Path) -> None:
    (bundle / "golden" / "cat.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BundleError, match=r"cat\.png: is a Git LFS pointer"):
        load_bundle(bundle)


def test_without_verifying_hashes_are_not_compared(bundle: Path) -> None:
    (bundle / "README.md").write_text("changed")
    (bundle / "golden" / "cat.png").unlink()
    with pytest.raises(BundleError):
        load_bundle(bundle)
    load_bundle(bundle, verify=False)


@pytest.mark.parametrize("named", [True, False])
def test_an_unreadable_file_is_an_error(named: bool, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", *([str(self)] if named else []))  # one of a read names no file

    monkeypatch.setattr(Path, "open", refuse)  # file modes do not stop root
    with pytest.raises(BundleError, match="Permission denied") as caught:
        load_bundle(bundle)
    assert caught.value.subject == str(bundle / "manifest.json" if named else bundle)


def test_where_no_file_can_be_opened_the_bundled_model_is_not_called_missing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    shutil.copytree(bundle, tmp_path / "caplet" / "models" / "tiny")
    monkeypatch.setattr(caplet.bundle, "__file__", str(tmp_path / "caplet" / "bundle.py"))
    monkeypatch.delenv("CAPLET_MODEL", raising=False)
    assert load_bundle().path == tmp_path / "caplet" / "models" / "tiny"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))  # what is open stays open
    try:
        with pytest.raises(BundleError, match="Too many open files") as caught:
            load_bundle()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caught.value.subject == str(tmp_path / "caplet" / "models")


def test_a_folder_that_nobody_may_look_into_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = Path.stat

    def refuse(self: Path, **options: Any) -> os.stat_result:
        if self.parent == bundle:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", refuse)  # file modes do not stop root
    with pytest.raises(BundleError, match="Permission denied") as caught:
        load_bundle(bundle)
    assert caught.value.subject == str(bundle / "manifest.json")


def test_graphs_are_hashed_also_where_no_thread_can_be_started(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert load_bundle(bundle).verified
    with (bundle / "encoder.onnx").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="altered"):
        load_bundle(bundle)


def test_the_path_is_absolute(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    bundle = load_bundle(tiny_bundle.name)
    assert bundle.path == tiny_bundle
    assert bundle.encoder == tiny_bundle / "encoder.onnx"


@needs_pipes
def test_a_pipe_in_place_of_a_file_is_not_opened(bundle: Path) -> None:
    (bundle / "encoder.onnx").unlink()
    os.mkfifo(bundle / "encoder.onnx")  # opening it would wait for ever
    for verify in (True, False):
        with pytest.raises(BundleError, match="not a file"):
            load_bundle(bundle, verify=verify)


@needs_links
@pytest.mark.parametrize("name", ["encoder.onnx", "vocabulary.txt", "manifest.json"])
def test_links_may_not_lead_out_of_the_bundle(name: str, bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / name, tmp_path / "outside")
    (bundle / name).symlink_to(tmp_path / "outside")
    for verify in (True, False):
        with pytest.raises(BundleError, match="leads out of the bundle"):
            load_bundle(bundle, verify=verify)


@needs_links
def test_links_inside_the_bundle_and_to_the_bundle_are_fine(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "encoder.onnx", bundle / "blob")
    (bundle / "encoder.onnx").symlink_to("blob")
    (tmp_path / "link").symlink_to(bundle)
    load_bundle(tmp_path / "link")


@needs_links
@pytest.mark.parametrize("folder", [".", "int8"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_bundle_is_read_as_huggingface_hub_caches_it(
    shared: bool, folder: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Files are links to blobs, and these, in newer versions, to blobs that all models share."""
    model = tmp_path / "hub" / "models--me--tiny"
    for file in (path for path in tiny_bundle.rglob("*") if path.is_file()):
        link = model / "snapshots" / "0a1b" / folder / file.relative_to(tiny_bundle)
        blob = model / "blobs" / file.name
        store = tmp_path / "hub" / "blobs" / file.name[:2] / file.name
        for path in (link, blob, store):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, store if shared else blob)
        if shared:
            blob.symlink_to(os.path.relpath(store, blob.parent))
        link.symlink_to(os.path.relpath(blob, link.parent))
    bundle = model / "snapshots" / "0a1b" / folder
    assert load_bundle(bundle).words == load_bundle(tiny_bundle).words

    (bundle / "vocabulary.txt").unlink()
    (bundle / "vocabulary.txt").symlink_to(tiny_bundle / "vocabulary.txt")
    with pytest.raises(BundleError, match=r"vocabulary\.txt: is a link that leads out of the bundle"):
        load_bundle(bundle, verify=False)


@needs_links
@pytest.mark.parametrize("folder", ["models--me--tiny/revisions/0a1b", "me/snapshots/0a1b"])
def test_links_into_blobs_are_those_of_huggingface_hub_only(folder: str, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / folder))
    blobs = bundle.parents[1] / "blobs"
    blobs.mkdir()
    shutil.move(bundle / "encoder.onnx", blobs / "encoder.onnx")
    (bundle / "encoder.onnx").symlink_to(blobs / "encoder.onnx")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        load_bundle(bundle)


def test_a_bundle_may_lie_where_windows_cannot_resolve_paths(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on RAM disks by ImDisk; Python passes over that unless it resolves them strictly."""

    def resolve(path: Any, *, strict: bool = False, there: Any = os.path.realpath) -> str:
        if strict:
            raise OSError(1, "Incorrect function", str(path))
        return str(there(path))

    monkeypatch.setattr(os.path, "realpath", resolve)
    assert load_bundle(bundle).verified


@needs_links
def test_a_loop_of_links_is_an_error(bundle: Path) -> None:
    (bundle / "encoder.onnx").unlink()
    (bundle / "encoder.onnx").symlink_to("encoder.onnx")
    with pytest.raises(BundleError):
        load_bundle(bundle, verify=False)


@needs_sparse_files
def test_empty_and_huge_files_are_refused(bundle: Path) -> None:
    (bundle / "vocabulary.txt").write_bytes(b"")
    with pytest.raises(BundleError, match="empty"):
        load_bundle(bundle, verify=False)
    with (bundle / "vocabulary.txt").open("wb") as file:
        file.truncate(2**40)  # sparse: nothing is written, but reading it would take a terabyte
    with pytest.raises(BundleError, match="larger"):
        load_bundle(bundle, verify=False)
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        load_bundle(bundle)
    with (bundle / "manifest.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BundleError, match="larger"):
        load_bundle(bundle)


# The manifest.


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"{", "not a JSON file"),
        (b"\xff\xfe{}", "not a JSON file"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[" * 100_000, "not a JSON file"),
        (b'{"a":' * 100_000, "not a JSON file"),
        (b'{"format_version": ' + b"1" * 100_000 + b"}", "not a"),
        (b'{"format_version": NaN}', "not a JSON file"),
        (b'{"metrics": {"x": -1e999}}', "not a JSON file .-1e999 is too large"),
        (b"{}", "format_version is missing"),
    ],
)
def test_content_that_is_not_a_manifest_is_an_error(content: bytes, cause: str, bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=cause):
        load_bundle(bundle)


@pytest.mark.parametrize(("version", "remedy"), [(4, "upgrade caplet"), (0, "export the bundle again")])
def test_another_format_version(version: int, remedy: str, bundle: Path) -> None:
    edit(bundle, lambda m: m.update(format_version=version))
    with pytest.raises(BundleError, match=rf"format_version is {version}.*{remedy}"):
        load_bundle(bundle)


@pytest.mark.parametrize(("version", "later"), [(1, ["repeatable", "forms"]), (2, ["forms"])])
def test_the_formats_before_are_read_as_if_their_later_members_said_nothing(
    version: int, later: list[str], bundle: Path
) -> None:
    before = load_bundle(bundle).manifest.decoding

    def as_before(manifest: Manifest) -> None:
        manifest["format_version"] = version
        for member in later:
            del manifest["decoding"][member]

    edit(bundle, as_before)
    assert load_bundle(bundle).manifest.decoding == before
    assert (before.repeatable, before.forms) == (None, ())


def test_the_second_format_says_what_may_be_repeated(bundle: Path) -> None:
    def as_before(manifest: Manifest) -> None:
        manifest["format_version"] = 2
        manifest["decoding"]["repeatable"] = [[4]]

    edit(bundle, as_before)
    assert load_bundle(bundle).manifest.decoding.repeatable == ((4,),)


def test_forms_of_words_are_read(bundle: Path) -> None:
    edit(bundle, lambda m: m["decoding"].update(forms=[[4, 6, 7], [4, 6, 8], [5, 6, 7]]))
    assert load_bundle(bundle).manifest.decoding.forms == ((4, 6, 7), (4, 6, 8), (5, 6, 7))


def test_repeatable_words_are_read(bundle: Path) -> None:
    edit(bundle, lambda m: m["decoding"].update(repeatable=[[4], [5, 4]]))
    assert load_bundle(bundle).manifest.decoding.repeatable == ((4,), (5, 4))


REQUIRED = [
    "format_version", "name", "created_with", "files", "graphs", "graphs.encoder", "graphs.decoder",
    "graphs.encoder.file", "graphs.decoder.file", "graphs.encoder.opset", "graphs.decoder.opset", "vocabulary",
    "vocabulary.file", "vocabulary.size", "preprocessing",
    "preprocessing.height", "preprocessing.width", "preprocessing.color", "preprocessing.dtype", "preprocessing.resize",
    "preprocessing.resample", "tokens", "tokens.pad", "tokens.start", "tokens.end", "tokens.unknown", "decoding",
    "decoding.beam_size", "decoding.max_length", "decoding.length_penalty", "decoding.block_repeated_trigrams",
    "decoding.repeatable", "decoding.forms",
    "license", "license.weights", "license.data", "provenance", "metrics", "golden", "golden.0.file", "golden.0.source",
    "golden.0.text", "golden.0.score", "golden.0.beam_size",
]  # fmt: skip


def parent_of(manifest: Any, path: str) -> tuple[Any, str]:
    *parents, last = path.split(".")
    for key in parents:
        manifest = manifest[int(key) if isinstance(manifest, list) else key]
    return manifest, last


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_field_is_named(path: str, bundle: Path) -> None:
    def remove(manifest: Manifest) -> None:
        parent, key = parent_of(manifest, path)
        del parent[key]

    edit(bundle, remove)
    with pytest.raises(BundleError, match=f"{path.split('.')[-1]} is missing"):
        load_bundle(bundle)


@pytest.mark.parametrize("path", REQUIRED)
@pytest.mark.parametrize("value", [None, True, 0.5, "x", [1], {"a": 1}], ids=repr)
def test_a_value_of_the_wrong_type_is_an_error(path: str, value: Any, bundle: Path) -> None:
    parent, key = parent_of(json.loads((bundle / "manifest.json").read_text()), path)
    if type(value) is type(parent[key]):
        pytest.skip("the right type")

    def replace(manifest: Manifest) -> None:
        parent, key = parent_of(manifest, path)
        parent[key] = value

    edit(bundle, replace)
    with pytest.raises(BundleError, match=path.split(".")[-1]):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("preprocessing.color", "BGR"),
        ("preprocessing.height", 0),
        ("preprocessing.width", 100_000),
        ("preprocessing.resize", "crop"),
        ("decoding.beam_size", 0),
        ("decoding.beam_size", 1.5),
        ("decoding.max_length", 0),
        ("decoding.max_length", 10**9),
        ("decoding.length_penalty", -1),
        pytest.param("decoding.length_penalty", 10**400, id="length_penalty of 401 digits"),
        pytest.param("golden.0.score", -(10**400), id="score of 401 digits"),
        ("graphs.encoder.opset", 0),
        ("decoding.block_repeated_trigrams", 1),
        ("decoding.repeatable", [4]),
        ("decoding.repeatable", [[]]),
        ("decoding.repeatable", [[4, 5, 4]]),
        ("decoding.repeatable", [["a"]]),
        ("decoding.repeatable", [[True]]),
        ("decoding.repeatable", [[-1]]),
        ("decoding.repeatable", [[10**6]]),
        ("decoding.repeatable", [[36]]),
        ("decoding.forms", [4, 6, 7]),
        ("decoding.forms", [[4, 6]]),
        ("decoding.forms", [[4, 6, 7, 8]]),
        ("decoding.forms", [[4, 6, True]]),
        ("decoding.forms", [[4, 3, 7]]),
        ("decoding.forms", [[4, 36, 7]]),
        ("decoding.forms", [[4, 6, 7], [4, 8, 7]]),
        ("graphs.decoder.saturates", None),
        ("graphs.encoder.saturates", "no"),
        ("vocabulary.size", 35),
        ("vocabulary.size", 10**12),
        ("tokens.end", "end"),
        ("golden", [1]),
        ("golden.0.score", "high"),
        ("golden.0.file", "golden/dog.png"),
        ("graphs.encoder.file", "README"),
        ("name", "x" * 500),
        ("name", ""),
        ("name", "x\x1b[2J"),
        ("name", "x" * 201),
        ("preprocessing.height", 4097),
        ("preprocessing.width", 4097),
        ("decoding.beam_size", 1001),
        ("decoding.max_length", 1001),
        ("decoding.length_penalty", 10.1),
    ],
)
def test_a_value_out_of_range_is_an_error(path: str, value: Any, bundle: Path) -> None:
    def replace(manifest: Manifest) -> None:
        parent, key = parent_of(manifest, path)
        parent[key] = value

    edit(bundle, replace)
    with pytest.raises(BundleError):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("preprocessing.height", 1),
        ("preprocessing.height", 4096),
        ("preprocessing.width", 1),
        ("preprocessing.width", 4096),
        ("decoding.beam_size", 1),
        ("decoding.beam_size", 1000),
        ("decoding.max_length", 1),
        ("decoding.max_length", 1000),
        ("decoding.length_penalty", 0),
        ("decoding.length_penalty", 10),
        ("golden.0.beam_size", 1),
        ("graphs.encoder.opset", 1),
        ("name", "x"),
        ("name", "x" * 200),
    ],
)
def test_the_ends_of_a_range_are_in_it(path: str, value: Any, bundle: Path) -> None:
    def replace(manifest: Manifest) -> None:
        parent, key = parent_of(manifest, path)
        parent[key] = value

    edit(bundle, replace)
    load_bundle(bundle)


@pytest.mark.parametrize("entry", [{"bytes": 5}, {"sha256": "0" * 64}, {"bytes": 5, "sha256": "A" * 64}, 7])
def test_a_file_entry_needs_a_size_and_a_hash(entry: Any, bundle: Path) -> None:
    edit(bundle, lambda m: m["files"].update({"README.md": entry}))
    with pytest.raises(BundleError, match="README"):
        load_bundle(bundle, verify=False)


@pytest.mark.parametrize(
    "name",
    [
        "../encoder.onnx",
        "/etc/passwd",
        "golden/../../x",
        "C:/x",
        "C:x",
        "a\\..\\..\\x",
        "",
        ".",
        "..",
        "a//b",
        "./a",
        "a\0b",
    ],
)
def test_a_manifest_may_not_point_outside_its_folder(name: str, bundle: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / "encoder.onnx", tmp_path / "encoder.onnx")

    def point(manifest: Manifest) -> None:
        manifest["files"][name] = manifest["files"]["encoder.onnx"]
        manifest["graphs"]["encoder"]["file"] = name

    def list_only(manifest: Manifest) -> None:
        manifest["files"][name] = manifest["files"]["encoder.onnx"]

    for change in (list_only, point):
        edit(bundle, change)
        for verify in (True, False):
            with pytest.raises(BundleError, match="not a file inside the bundle"):
                load_bundle(bundle, verify=verify)


# The vocabulary.


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda words: words[:-1], "35 words"),
        (lambda words: [*words, "more"], "37 words"),
        (lambda words: [*words[:-1], "a"], "'a' twice"),
        (lambda words: [words[1], words[0], *words[2:]], "starts with"),
        (lambda words: [*words[:-1], ""], "line 36"),
        (lambda words: [*words[:-1], "two words"], "line 36"),
        (lambda words: [*words[:-1], "a\tb"], "line 36"),
        (lambda words: [*words[:5], "x\r", *words[6:]], "line 6"),
        (lambda words: [*words[:-1], "\udcff"], "not UTF-8"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_vocabulary_that_does_not_fit(
    change: Callable[[list[str]], list[str]], cause: str, verify: bool, bundle: Path
) -> None:
    words = (bundle / "vocabulary.txt").read_text().split()
    text = "".join(word + "\n" for word in change(words))
    (bundle / "vocabulary.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    rehash(bundle)
    with pytest.raises(BundleError, match=cause):
        load_bundle(bundle, verify=verify)


def test_a_word_twice_in_a_large_vocabulary_is_found_at_once(bundle: Path) -> None:
    words = vocabulary(40_000)
    words.append(words[-1])
    (bundle / "vocabulary.txt").write_text("".join(word + "\n" for word in words), newline="\n")
    rehash(bundle, lambda m: m["vocabulary"].update(size=len(words)))
    started = time.perf_counter()
    with pytest.raises(BundleError, match=f"'{words[-1]}' twice"):
        load_bundle(bundle)
    assert time.perf_counter() - started < 2
