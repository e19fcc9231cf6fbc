"""The product as a user gets it: installed, with its model, and nothing else.

These tests import pytest, caplet and the standard library only. They run in the checkout, and again, copied to an empty
folder, in an environment that holds the built wheel alone (`CAPLET_WHEEL` then names the wheel).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PHOTOS = Path(__file__).parent.parent / "photos"
ASTRONAUT = PHOTOS / "astronaut.jpg"
HEAVY = ("tensorflow", "keras", "tf2onnx", "onnx", "torch", "matplotlib", "tqdm")
WHEEL = os.environ.get("CAPLET_WHEEL")
only_wheel = pytest.mark.skipif(not WHEEL, reason="CAPLET_WHEEL names no wheel: the checkout is tested, not a wheel")


def caplet(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "caplet", *map(str, arguments)], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_photo_in_a_sentence_out() -> None:
    sentence = caplet(ASTRONAUT).stdout.strip()
    assert 4 <= len(sentence.split()) <= 20
    assert set(sentence.split()) & {"woman", "man", "person", "girl", "lady", "people", "boy", "child"}


def test_several_photos_a_line_each_with_its_path() -> None:
    photos = sorted(PHOTOS.glob("*.jpg"))
    lines = caplet(*photos).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == list(map(str, photos))
    assert len({line.split("\t")[1] for line in lines}) > 1


def test_the_model_says_here_what_it_said_when_it_was_made() -> None:
    report = json.loads(caplet("check", "--json").stdout)
    assert report["ok"] is True


def test_python_gives_words_scores_and_attention() -> None:
    from caplet import Captioner

    captioner = Captioner()
    caption = captioner.caption(ASTRONAUT)
    assert caption.text == captioner.caption(ASTRONAUT.read_bytes()).text == caplet(ASTRONAUT).stdout.strip()
    assert caption.attention.shape == (len(caption.words), 8, 8)
    assert abs(caption.attention.sum(axis=(1, 2)) - 1).max() < 1e-3
    assert len(caption.word_scores) == len(caption.words)


def test_captioning_loads_nothing_heavy() -> None:
    script = (
        "import sys, caplet\n"
        f"caplet.Captioner().caption({str(ASTRONAUT)!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_broken_photo_costs_the_others_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(ASTRONAUT.read_bytes()[:500])
    done = caplet(ASTRONAUT, broken, tmp_path / "gone.jpg", PHOTOS / "cat.jpg", status=1)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [str(ASTRONAUT), str(PHOTOS / "cat.jpg")]
    assert len(done.stderr.strip().splitlines()) == 2
    assert "broken.jpg" in done.stderr and "gone.jpg" in done.stderr


def test_both_packages_are_typed_and_installed() -> None:
    for name in ("caplet", "caplet_export"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        assert (Path(spec.origin).parent / "py.typed").exists()


def test_an_app_that_pyinstaller_makes_has_the_model_and_every_module() -> None:
    import caplet as package
    from caplet._pyinstaller import hook_dirs

    (folder,) = hook_dirs()
    told = runpy.run_path(str(Path(folder) / "hook-caplet.py"))
    (model, place), *licence = told["datas"]
    assert (Path(model) / "manifest.json").exists()
    assert place == f"caplet/models/{Path(model).name}"  # where caplet looks for it in an installation
    modules = {file.stem for file in Path(package.__file__ or "").parent.glob("*.py")} - {"__init__"}
    installed = list(importlib.metadata.distributions(name="caplet"))
    assert [(Path(file).name, folder) for file, folder in licence] == [("LICENSE", "caplet")] * len(installed)
    assert all(Path(file).exists() for file, _ in licence)
    readers = {"pillow_heif"} if importlib.util.find_spec("pillow_heif") else set()
    assert {f"caplet.{module}" for module in modules} | readers == set(told["hiddenimports"])


@only_wheel
def test_pyinstaller_is_told_of_the_hook() -> None:
    (entry,) = importlib.metadata.distribution("caplet").entry_points.select(group="pyinstaller40")
    assert entry.load()() == [str(Path(importlib.util.find_spec("caplet._pyinstaller").origin).parent)]


@pytest.mark.skipif(not importlib.util.find_spec("PyInstaller"), reason="PyInstaller is not installed")
def test_pyinstaller_makes_an_app_of_the_command(tmp_path: Path) -> None:
    from caplet._pyinstaller import hook_dirs

    script = tmp_path / "app.py"
    script.write_text("from caplet.cli import command\ncommand()\n")
    options = ["--additional-hooks-dir", hook_dirs()[0], "--distpath", tmp_path, "--workpath", tmp_path / "work"]
    subprocess.run(
        [sys.executable, "-m", "PyInstaller", *options, "--specpath", tmp_path, script], check=True, capture_output=True
    )
    for arguments in ([ASTRONAUT], ["check"]):
        done = subprocess.run([tmp_path / "app" / "app", *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


@only_wheel
def test_the_wheel_is_slim_and_whole() -> None:
    assert WHEEL is not None
    assert Path(WHEEL).stat().st_size <= 35e6
    names = zipfile.ZipFile(WHEEL).namelist()
    assert any(name.startswith("caplet/models/") and name.endswith("encoder.onnx") for name in names)
    assert not any("tests/" in name or "Flicker8k" in name for name in names)


@only_wheel
def test_the_wheel_says_under_which_licence_it_is() -> None:
    """As PEP 639 has it, which hatchling writes from 1.27 on: an SPDX expression, and the file."""
    installed = importlib.metadata.distribution("caplet")
    assert installed.metadata.get_all("License-Expression") == ["Apache-2.0"]
    assert installed.metadata.get_all("License-File") == ["LICENSE"]
    assert "Apache License" in (installed.read_text("licenses/LICENSE") or "")


@only_wheel
@pytest.mark.parametrize("name", HEAVY)
def test_the_wheel_alone_brings_nothing_heavy(name: str) -> None:
    assert importlib.util.find_spec(name) is None


@only_wheel
def test_it_is_the_wheel_that_is_tested() -> None:
    spec = importlib.util.find_spec("caplet")
    assert spec is not None and spec.origin is not None
    assert "site-packages" in spec.origin
