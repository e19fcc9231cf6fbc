"""The house: every module has its place on docs/development.md, and imports go one way.

Like the other tests of the product, these import pytest and the two packages only.
"""

from __future__ import annotations

import ast
import graphlib
import io
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import caplet
import caplet_export
from caplet.bundle import load_bundle

HERE = Path(__file__).resolve().parent
ROOT = next((folder for folder in HERE.parents if (folder / "docs").is_dir()), HERE.parent)
FOLDERS = {package.__name__: Path(package.__file__ or "").parent for package in (caplet, caplet_export)}


def modules(package: str) -> dict[str, Path]:
    """The files of a package by the full names of their modules."""
    folder = FOLDERS[package]
    return {
        ".".join([package, *file.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): file
        for file in folder.rglob("*.py")
    }


def imported(node: ast.AST) -> Iterator[str]:
    """What code imports anywhere, even within functions, except for types alone."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


@pytest.mark.parametrize("package", FOLDERS)
def test_no_module_imports_one_that_imports_it(package: str) -> None:
    files = modules(package)
    graph = {
        name: set(imported(ast.parse(file.read_text(encoding="utf-8")))) & files.keys() - {name}
        for name, file in files.items()
    }
    assert sum(map(len, graph.values())) > len(files)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_runtime_imports_nothing_of_the_toolchain() -> None:
    for file in modules("caplet").values():
        roots = {name.split(".")[0] for name in imported(ast.parse(file.read_text(encoding="utf-8")))}
        assert not roots & {"caplet_export", "tensorflow", "keras", "onnx", "tf2onnx", "jax"}


@pytest.mark.parametrize("package", FOLDERS)
def test_every_module_is_on_the_map(package: str) -> None:
    page = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", re.sub(r"^```sh\n.*?^```$", "", page, flags=re.M | re.S)))
    files = [file for file in FOLDERS[package].glob("*.py") if not file.stem.startswith("__")]
    assert not {file.stem for file in files} - words


def test_the_map_names_no_test_that_is_gone() -> None:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the checkout only holds the other tests")
    page = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", page))
    assert len(named) >= 10
    assert named <= {file.name for file in (ROOT / "tests").rglob("*.py")}


def test_the_citation_says_of_caplet_what_its_metadata_say() -> None:
    """It names no version, which it would have to be given at every release."""
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the checkout only has the citation")
    project, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff"))
    for member, cited in {
        "name": "title",
        "description": "abstract",
        "license": "license",
        "keywords": "keywords",
    }.items():
        (value,) = re.findall(rf"^{member} = (.+)$", project, re.M)
        assert f"\n{cited}: {value}\n" in citation


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a checkout of Git's")
def test_a_clone_on_windows_has_the_model_as_it_is(tmp_path: Path) -> None:
    git = ("git", "-C", str(ROOT), "-c", "safe.directory=*")  # a container's user seldom owns what is mounted there
    as_on_windows = (*git, "-c", "core.autocrlf=true")  # the choice of Git's installer there
    folder = "models/flickr8k-gru-int8"
    archive = subprocess.check_output(
        [*as_on_windows, "archive", "--format=zip", "--worktree-attributes", "HEAD", folder]
    )
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(tmp_path)
    assert load_bundle(tmp_path / folder).verified
