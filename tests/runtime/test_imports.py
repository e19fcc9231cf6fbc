"""What an import brings along: nothing heavy for the command's help, and never anything of the export tools."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image, features

import caplet
from pictures import encoded

HEAVY = {"numpy", "onnxruntime", "PIL"}
EXPORT_ONLY = {"caplet_export", "tensorflow", "keras", "onnx", "tf2onnx", "torch", "matplotlib", "tqdm"}


def modules_after(code: str, *arguments: str) -> set[str]:
    """Top-level packages that a fresh process has imported after `code`."""
    tail = "\nimport json, sys\nprint(json.dumps(sorted({n.split('.')[0] for n in sys.modules})), file=sys.stderr)"
    process = subprocess.run(
        [sys.executable, "-c", code + tail, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(process.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import caplet",
        "import caplet.cli",
        "from caplet import CapletError, ImageError",
        "from caplet.cli import main; assert main(['--help']) == 0",
        "from caplet.cli import main; assert main(['--version']) == 0",
        "from caplet.cli import main; assert main(['bench', '--help']) == 0",
        "from caplet.cli import main; assert main([]) == 2",
    ],
)
def test_the_light_things_import_nothing_heavy(code: str) -> None:
    assert not modules_after(code) & (HEAVY | EXPORT_ONLY)


def test_captioning_imports_nothing_of_the_export_tools(tiny_bundle: Path, photos: Path) -> None:
    code = """
import sys
from caplet.cli import main
model, photo = sys.argv[1:]
assert main(["--model", model, photo, photo, "--attention", model + "/../drawings", "--format", "jsonl"]) == 0
assert main(["info", "--model", model]) == 0
assert main(["check", "--model", model]) == 0
"""
    loaded = modules_after(code, str(tiny_bundle), str(photos / "cat.jpg"))
    assert loaded >= HEAVY
    assert not loaded & EXPORT_ONLY


IN_A_CHILD = """
import os, sys
from caplet import Captioner

captioner = Captioner(sys.argv[1], threads=1)
photos = sys.stdin.buffer.read().split(b"-- next --")
if os.fork() == 0:
    loaded = set(sys.modules)
    for photo in photos:
        captioner.caption(photo)
    print(len(photos), sorted(set(sys.modules) - loaded), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_no_photo_makes_a_forked_child_import_anything(tiny_bundle: Path) -> None:
    """It would wait for ever if, at the fork, another thread of its parent was importing the same."""
    photo = Image.new("RGB", (8, 8), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.register_heif_opener()  # for `Image.save`
    formats = ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "HEIF"]
    formats += ["AVIF"] * features.check("avif")
    files = [encoded(photo, each) for each in formats]
    files += [encoded(photo, each, exif=exif, icc_profile=bytes(16) + b"RGB ") for each in ("JPEG", "PNG", "WEBP")]
    files += [encoded(photo.convert(mode), "TIFF") for mode in ("LAB", "CMYK", "F", "L")]
    command = [sys.executable, "-c", IN_A_CHILD, str(tiny_bundle)]
    done = subprocess.run(command, input=b"-- next --".join(files), capture_output=True, check=True)
    assert done.stdout.decode() == f"{len(files)} []\n"


VENDORED = """
import sys
sys.modules["caplet"] = None  # not installed
from mypkg._vendor import caplet
from mypkg._vendor.caplet.cli import main
model, photo = sys.argv[1:]
caption = caplet.Captioner(model).caption(photo)
assert isinstance(caption, caplet.Caption)
assert main(["--model", model, photo]) == 0
print(caption)
"""


def test_it_works_where_a_project_keeps_it_under_another_name(tmp_path: Path, tiny_bundle: Path, photos: Path) -> None:
    """With its statements of import rewritten, as pip's `vendoring` does for the packages in `pip._vendor`."""
    vendor = tmp_path / "mypkg" / "_vendor"
    package = Path(caplet.__file__).parent
    (vendor / "caplet").mkdir(parents=True)
    for module in package.glob("*.py"):
        code = re.sub(r"(?m)^( *)from caplet(?=[. ])", r"\1from mypkg._vendor.caplet", module.read_text("utf-8"))
        assert not re.search(r"(?m)^ *import caplet\.", code)  # which cannot be rewritten
        code = re.sub(r"(?m)^( *)import caplet$", r"\1from mypkg._vendor import caplet", code)
        (vendor / "caplet" / module.name).write_text(code, "utf-8")
    command = [sys.executable, "-c", VENDORED, str(tiny_bundle), str(photos / "cat.jpg")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    assert told[0] == told[1]


def test_python_m_caplet_ends_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["caplet", "--nonsense"])
    monkeypatch.setattr(os, "_exit", sys.exit)  # otherwise the tests would end here, too
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("caplet", run_name="__main__")
    assert ended.value.code == 2


@pytest.mark.parametrize("arguments", [["--version"], ["nowhere.jpg"]])
def test_python_m_caplet_is_the_command(arguments: list[str], tiny_bundle: Path) -> None:
    module = [sys.executable, "-m", "caplet"]
    script = [sys.executable, "-c", "import sys; from caplet.cli import main; sys.exit(main())"]
    results = [
        subprocess.run([*command, *arguments], capture_output=True, check=False, env={"CAPLET_MODEL": str(tiny_bundle)})
        for command in (module, script)
    ]
    assert results[0].returncode == results[1].returncode == (0 if arguments == ["--version"] else 1)
    assert (results[0].stdout, results[0].stderr) == (results[1].stdout, results[1].stderr)
