"""README.md and docs/ do what they say: every shell command and Python block in them is run.

Blocks are taken from the Markdown itself. An HTML comment on the line before a block says that it is run elsewhere:
`<!-- test: export -->` by tests/export/test_whole_path.py, `<!-- first-command -->` and `<!-- test-command -->` by
.ci/run; or, with `<!-- test: skip, WHY -->`, that it is not run, for the reason given.

These tests import pytest, the two packages and the standard library only. They run in the checkout, and again beside a
copy of README.md, docs/ and photos/, in an environment that holds the built wheel alone.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import caplet
import caplet_export
from caplet import Captioner
from caplet.bundle import locate_bundle

HERE = Path(__file__).resolve().parent
PHOTOS = HERE.parent / "photos"
ROOT = next((folder for folder in HERE.parents if (folder / "docs").is_dir()), HERE.parent)
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
IN_THE_CHECKOUT = ("benchmarks/README.md", "benchmarks/results/results.md", "models/flickr8k-gru-int8/README.md")
BLOCK = re.compile(r"(?:^<!-- *(?P<mark>[^\n]*?) *-->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
ELSEWHERE = re.compile(r"first-command|test-command|test: export|test: skip, \S.*")
RUN = ("sh", "python")
NOT_RUN = ("text", "json")
OPTION = re.compile(r"--[a-z][a-z-]+")


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    line: int
    language: str
    mark: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> list[Block]:
    return [
        Block(page, line_of(text, found.start("language")), found["language"], found["mark"] or "", found["code"])
        for found in BLOCK.finditer(text)
    ]


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


BLOCKS = [block for page, text in PAGES.items() for block in blocks_of(page, text)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the sample photos where the pages expect them."""
    shutil.copytree(PHOTOS, tmp_path / "tests" / "photos")
    return tmp_path


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in RUN and not block.mark], ids=str)
def test_a_block_runs_as_it_stands(block: Block, folder: Path) -> None:
    if block.language == "sh":
        if sys.platform == "win32":
            pytest.skip("written for a shell that this system lacks")
        (folder / "my-bundle").symlink_to(locate_bundle())  # as a bundle of one's own
        command = ["bash", "-euo", "pipefail", "-c", block.code]
    else:
        (folder / "block.py").write_text(block.code, encoding="utf-8")
        command = [sys.executable, "block.py"]
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr


def test_every_page_is_there() -> None:
    expected = {"using", "training", "bundle-format", "benchmarking", "troubleshooting", "development"}
    assert {f"docs/{name}.md" for name in expected} | {"README.md"} <= set(PAGES)


def test_every_block_is_found_and_its_mark_is_known() -> None:
    for page, text in PAGES.items():
        fences = re.findall(r"^ *(?:```|~~~)", text, re.M)
        assert len(fences) == 2 * len(blocks_of(page, text)), f"{page} has a block that is not found"
    for block in BLOCKS:
        assert block.language in RUN + NOT_RUN, f"{block} is in {block.language!r}"
        assert not block.mark or ELSEWHERE.fullmatch(block.mark), f"{block} has the mark {block.mark!r}"
        # Whatever runs these blocks looks for them on one page only.
        assert not block.mark.startswith("test: export") or block.page == "docs/training.md"
        assert not block.mark.endswith("-command") or block.page == "README.md"
    assert sum(block.language in RUN and not block.mark for block in BLOCKS) >= 20


def test_every_link_leads_somewhere() -> None:
    others = {name: ROOT / name for name in IN_THE_CHECKOUT if (ROOT / "pyproject.toml").exists()}
    pages = PAGES | {name: path.read_text(encoding="utf-8") for name, path in others.items()}
    for page, text in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, anchor = target.partition("#")
            if "://" in name:
                continue
            path = page if not name else ((ROOT / page).parent / name).resolve().relative_to(ROOT).as_posix()
            if path in pages:
                assert not anchor or anchor in anchors(pages[path]), f"{page} links to {target}"
            else:  # files that only the checkout has
                assert path.startswith(("models/", "benchmarks/", "CHANGELOG.md")), f"{page} links to {target}"
                assert not (ROOT / "pyproject.toml").exists() or (ROOT / path).exists(), f"{page} links to {target}"


def test_the_captions_in_the_readme_are_the_models() -> None:
    """The sentence of the first command, and those on the photos whose subject the model has no word for."""
    shown = dict(re.findall(r"^(\w+\.jpg)  +(.+)$", PAGES["README.md"], re.M))
    sentence = re.search(r"tests/photos/(\w+\.jpg)\n```\n\n```text\n(.+)\n```", PAGES["README.md"])
    assert sentence is not None
    shown[sentence[1]] = sentence[2]
    assert shown.keys() == {photo.name for photo in PHOTOS.glob("*.jpg")}
    captioner = Captioner()
    assert {name: captioner.caption(PHOTOS / name).text for name in shown} == shown


def test_the_record_on_the_page_is_the_models(folder: Path) -> None:
    """All of what it shows but the time; the last digits of scores may differ on another processor."""

    def read(record: str) -> dict[str, Any]:
        return json.loads(record, parse_float=lambda number: round(float(number), 1))

    block = next(block for block in BLOCKS if block.page == "docs/using.md" and block.code.startswith('{"path": '))
    shown = read(block.code.replace(", …", "").replace("…", ""))
    command = [sys.executable, "-m", "caplet", shown["path"], "--format", "jsonl"]
    record = read(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)
    for name in ("words", "alternatives", "model_sha256"):  # which it shows the beginnings of
        record[name] = record[name][: len(shown[name])]
    shown["milliseconds"] = record["milliseconds"]
    assert list(record.items()) == list(shown.items())


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "verb"), [("using", []), ("using", ["info"]), ("using", ["check"]), ("benchmarking", ["bench"])], ids=str
)
def test_every_option_is_explained(page: str, verb: list[str]) -> None:
    command = [sys.executable, "-m", "caplet", *verb, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    options = set(OPTION.findall(told)) - {"--help"}
    assert options
    assert not options - set(OPTION.findall(PAGES[f"docs/{page}.md"]))


def test_every_member_of_a_manifest_is_specified() -> None:
    manifest = json.loads((Captioner().bundle.path / "manifest.json").read_text(encoding="utf-8"))
    fixed = ("graphs", "vocabulary", "preprocessing", "tokens", "decoding", "license")
    members = {*manifest, *manifest["files"]["encoder.onnx"], *manifest["graphs"]["encoder"], *manifest["golden"][0]}
    members |= {name for member in fixed for name in manifest[member]}
    text = PAGES["docs/bundle-format.md"]
    assert not {name for name in members if f'"{name}"' not in text and f"`{name}`" not in text}


MESSAGES = [
    message
    for heading in re.findall(r"^### (`.*)$", PAGES.get("docs/troubleshooting.md", ""), re.M)
    for _, message in re.findall(r"(`+)(.+?)\1(?!`)", heading)
    if not message.startswith("caplet ")
]


def test_there_are_messages_to_look_up() -> None:
    assert len(MESSAGES) >= 20


def strings_in(node: ast.AST) -> str:
    """The text of a string in the code, with an ellipsis for each value filled in; empty for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(strings_in(part) or "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@pytest.fixture(scope="module")
def said_in_the_code() -> str:
    """Every string in the code of both packages, one to a line."""
    folders = [Path(package.__file__).parent for package in (caplet, caplet_export) if package.__file__]
    modules = [module for folder in folders for module in sorted(folder.rglob("*.py"))]
    trees = [ast.parse(module.read_text(encoding="utf-8")) for module in modules]
    return "\n".join(strings_in(node) for tree in trees for node in ast.walk(tree))


@pytest.mark.parametrize("message", MESSAGES)
def test_the_messages_are_those_of_the_code(message: str, said_in_the_code: str) -> None:
    """Each fixed part of a message is in the code."""
    parts = [part.strip(" :;,()") for part in re.split(r"…|; |: ", message)]
    missing = [part for part in parts if part and part not in said_in_the_code]
    assert not missing
