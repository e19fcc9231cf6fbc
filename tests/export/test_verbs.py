"""What every verb of `caplet-export` does with its arguments, before anything heavy is imported."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf
from matplotlib.figure import Figure

from caplet.errors import CapletError, ImageError, InferenceError
from caplet_export.cli import VERBS, main
from caplet_export.config import Config, TrainConfig
from caplet_export.progress import ProgressBar, tell
from caplet_export.ranges import METHODS
from caplet_export.runs import Epoch
from caplet_export.stages import Stage
from caplet_export.verbs import read_data, tell_end, tell_epoch
from command_line import Terminal
from tiny_flickr8k import write_split, write_tiny_flickr8k


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("features", "--batch-size"),
        ("prune", "--state-size"),
        ("prune", "--feature-size"),
        ("prune", "--attention-size"),
        ("trim", "--likeliest"),
        ("convert", "--limit"),
        ("quantize", "--calibration"),
        ("quantize", "--evaluate"),
        ("bundle", "--beam"),
        ("bundle", "--max-length"),
        ("evaluate", "--beam"),
        ("evaluate", "--limit"),
        ("evaluate", "--threads"),
    ],
)
@pytest.mark.parametrize("number", ["0", "-5"])
def test_counts_begin_at_one(verb: str, option: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = f"argument {option}: '{number}' is not a whole number of at least 1"
    assert refusal(capsys, verb, f"{option}={number}") == said


@pytest.mark.parametrize("verb", ["prune", "quantize"])
@pytest.mark.parametrize("number", ["-1", "4294967296"])
def test_seeds_have_32_bits(verb: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, verb, f"--seed={number}") == f"argument --seed: {number} is not 0 to 4294967295"


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "10.5", "much"])
def test_a_length_penalty_is_a_number_that_bundles_may_have(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before a bundle is written, of which the runtime then reads the manifest."""
    said = f"argument --length-penalty: '{number}' is not a number from 0 to 10"
    assert refusal(capsys, "bundle", f"--length-penalty={number}") == said


def test_wildcards_are_expanded_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("2", "1"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("caplet.inputs.sys", SimpleNamespace(platform="win32"))
    assert main(["join", str(tmp_path / "?"), "-o", str(tmp_path / "joined")]) == 1
    assert f"{tmp_path / '1'}: " in capsys.readouterr().err


def test_a_block_that_inception_lacks_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Told before Keras' weights are downloaded."""
    said = refusal(capsys, "features", "--data=data", "--layer", "mixed9", "mixed11")
    assert said.startswith("argument --layer: invalid choice: 'mixed11' (choose from ")


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        ("features out --data d", True),
        ("train run --data d --features f", True),
        ("tune run --data d --from r", True),
        ("evaluate bundle --data d --json out.json", True),
        ("evaluate --compare a b --data d --report r", True),
        ("evaluate bundle --data d", False),
        ("join a b -o out", False),
        ("trim run --words w -o out", False),
        ("prune run --data d --features f -o out", False),
        ("ablation a b --data d --features f -o out.json", False),
        ("convert run --data d -o out", False),
        ("quantize graphs --data d -o out", False),
    ],
)
def test_only_what_goes_on_is_said_to(
    command: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = command.split()[0]

    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"caplet_export.verbs.{verb}"), "run", interrupted)
    assert main(command.split()) == 130
    said = "interrupted; run the same command to go on" if goes_on else "interrupted"
    assert capsys.readouterr().err == f"caplet-export {verb}: {said}\n"


def test_convert_without_a_photo_for_the_proof_says_so_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before TensorFlow is imported and anything converted."""
    data = write_tiny_flickr8k(tmp_path / "data", train=1, dev=1)
    write_split(data, "test", [])
    command = ["convert", str(tmp_path / "run"), "--data", str(data), "--split", "test", "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert capsys.readouterr().err == "caplet-export convert: the proof needs at least one test photo; see --split\n"


@pytest.mark.parametrize("verb", ["train", "tune"])
@pytest.mark.parametrize("name", ["ckpt-1.index", "checkpoints"])
def test_what_another_program_has_trained_is_no_run(
    verb: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is given as --from of the tutorials' checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ckpt-1.index").write_bytes(b"\0")
    features = ["--features", "f"] if verb == "train" else []
    assert main([verb, str(tmp_path / "run"), "--data", "d", *features, "--from", str(tmp_path / name)]) == 1
    told = f"{tmp_path / name}: no trained run here; give the folder of a run that has finished an epoch"
    assert capsys.readouterr().err == f"caplet-export {verb}: {told}\n"


@pytest.mark.parametrize("error", [ImageError("cat.jpg", "no photo"), InferenceError("decoder.onnx", "failed", "why")])
def test_errors_of_the_runtime_are_one_line(
    error: CapletError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In whatever verb."""

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module("caplet_export.verbs.join"), "run", fail)
    assert main(["join", "a", "b", "-o", "out"]) == 1
    assert capsys.readouterr().err == f"caplet-export join: {error}\n"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["features", "out"], "free some, or lower --batch-size"),
        (["train", "run", "--features", "f"], "free some, or lower train.batch_images"),
        (["convert", "run", "-o", "out"], "free some"),
    ],
)
@pytest.mark.parametrize("numpy", [True, False])
def test_a_lack_of_memory_is_one_line(
    numpy: bool,
    arguments: list[str],
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """NumPy and TensorFlow have errors of their own for it."""

    def fail(_: object) -> int:
        raise MemoryError if numpy else tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(importlib.import_module(f"caplet_export.verbs.{arguments[0]}"), "run", fail)
    assert main([*arguments, "--data", "d"]) == 1
    assert capsys.readouterr().err == f"caplet-export {arguments[0]}: not enough memory; {remedy}\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ImportError("initialization failed")])
def test_ctrl_c_in_an_import_is_an_interruption(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a C module makes an ImportError of it."""
    error.__cause__ = KeyboardInterrupt()

    def break_off(_: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", break_off)
    assert main(["features", "out", "--data", "d"]) == 130
    assert capsys.readouterr().err == "caplet-export features: interrupted\n"


def test_what_cannot_be_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> None:
        raise ImportError("libstdc++.so.6:\nno such file", name="onnx")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert main(["quantize", "graphs", "--data", "d", "-o", "out"]) == 1
    said = "onnx cannot be imported (libstdc++.so.6: no such file)"
    remedy = "make a new virtual environment for caplet[export]"
    assert capsys.readouterr().err == f"caplet-export quantize: {said}; {remedy}\n"


def test_tensorflow_that_cannot_be_imported_is_told_by_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It raises an error whose text is the cause's traceback."""
    (tmp_path / "imitation_of_tensorflow.py").write_text(
        "import traceback\n"
        "try:\n    raise ImportError('DLL load failed: no such routine.')\n"
        "except ImportError:\n    raise ImportError(traceback.format_exc() + '\\n\\nFailed to load the runtime.')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda _: run("imitation_of_tensorflow"))
    assert main(["train", "a", "--data", "d", "--features", "f"]) == 1
    said = "imitation_of_tensorflow cannot be imported (DLL load failed: no such routine.)"
    remedy = "make a new virtual environment for caplet[export]"
    assert capsys.readouterr().err == f"caplet-export train: {said}; {remedy}\n"


@pytest.mark.parametrize(
    ("verb", "extra", "wrong", "told"),
    [
        ("tune", "tune", "raise TypeError('Cannot be created.\\nRegenerate.')", "Cannot be created. Regenerate."),
        ("convert", "export", "import tqdm; tqdm.float3", "module 'tqdm' has no attribute 'float3'"),
    ],
)
def test_libraries_that_do_not_fit_together_are_one_line(
    verb: str,
    extra: str,
    wrong: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They raise anything while they are imported, perhaps one by another; other errors are not taken for that."""
    (tmp_path / "outer_library.py").write_text("import inner_library.part\n")
    (tmp_path / "inner_library").mkdir()
    (tmp_path / "inner_library" / "__init__.py").touch()
    inner = tmp_path / "inner_library" / "part.py"
    inner.write_text(f"def check():\n    {wrong}\n\ncheck()\n")
    monkeypatch.delitem(sys.modules, "inner_library", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    run = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda _: run("outer_library"))
    assert main([verb, "a", "--data", "d"]) == 1
    said = f"inner_library cannot be imported ({told})"
    remedy = f"make a new virtual environment for caplet[{extra}]"
    assert capsys.readouterr().err == f"caplet-export {verb}: {said}; {remedy}\n"

    monkeypatch.setattr(importlib, "import_module", lambda _: int("a mistake of ours"))
    with pytest.raises(ValueError, match="a mistake of ours"):
        main([verb, "a", "--data", "d"])


@pytest.mark.parametrize("closed", ["", "1", "2", "12"])
def test_streams_that_are_closed_or_lack_a_character_fail_nothing(closed: str) -> None:
    script = """
import multiprocessing, os, sys
from caplet_export import cli
from caplet_export.progress import ProgressBar
multiprocessing.set_start_method("spawn")  # not forking is what Python does from 3.14 on
def main():
    for _ in ProgressBar(range(3)):
        print("caf\\xe9 \\udce9")
    print("caf\\xe9", file=sys.stderr, flush=True)
    os.close(os.dup(2))
    return 7 if os.open("/dev/null", os.O_RDONLY) > 2 else 8
cli.main = main
cli.command()
"""
    command = shlex.join([sys.executable, "-c", script]) + "".join(f" {descriptor}>&-" for descriptor in closed)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}  # bash says where a locale is missing
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert process.returncode == 7, process.stderr
    assert process.stdout == ("" if "1" in closed else "caf\\xe9 \\udce9\n" * 3)
    assert process.stderr == ("" if "2" in closed else "caf\\xe9\n")


@pytest.mark.parametrize(("term", "before"), [("xterm", "\r"), ("dumb", "")])
def test_a_line_stands_above_the_bar_and_does_not_steer_the_terminal(
    term: str, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with ProgressBar(total=2) as bar:
        bar.update()
        tell("left out \x1b[2J.jpg")
    assert f"{before}left out \\x1b[2J.jpg\n{before}" in terminal.getvalue()
    assert ("/2" in terminal.getvalue()) == (term != "dumb")


def test_names_in_a_data_set_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_flickr8k(tmp_path, train=2, dev=2)
    with (tmp_path / "Flickr8k.token.txt").open("a") as file:
        file.write("\x1b[2J.jpg#0\ta dog\n")
    read_data(argparse.Namespace(data=tmp_path, verb="train"))
    err = capsys.readouterr().err
    assert "caplet-export train: Flickr8k.token.txt:" in err and "\\x1b[2J.jpg\n" in err


def refusal(capsys: pytest.CaptureFixture[str], verb: str, *arguments: str) -> str:
    """What a verb says to wrong usage, in one line, without its own name and the way to its help."""
    with pytest.raises(SystemExit) as stopped:
        main([verb, "folder", *arguments])
    assert stopped.value.code == 2
    before, after = f"caplet-export {verb}: error: ", f"; see caplet-export {verb} --help\n"
    line = capsys.readouterr().err
    assert line.startswith(before) and line.endswith(after)
    return line.removeprefix(before).removesuffix(after)


def test_the_verb_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    """With the way to its own help, which has its options."""
    said = refusal(capsys, "train", "--data", "d", "--features", "f", "--epochs", "3")
    assert said == "unrecognized arguments: --epochs 3"


def test_the_help_of_quantize_names_the_methods_without_onnx() -> None:
    script = """
import sys
from caplet_export.cli import main
try:
    main(["quantize", "--help"])
finally:
    assert not {"onnx", "onnxruntime", "tensorflow"} & set(sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"{{{','.join(METHODS)}}}" in process.stdout


def test_python_m_caplet_export_is_the_command() -> None:
    """Where pip puts scripts into a folder that is not in PATH, as often on Windows."""
    command = [sys.executable, "-m", "caplet_export", "features", "--nonsense"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("caplet-export features: error: ")


def test_curves_that_a_killed_run_could_not_draw_are_drawn_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None, or those of the epoch before; and not again if they are there."""
    drawn: list[Path] = []
    monkeypatch.setattr("caplet_export.charts.plot_history", lambda *given: drawn.append(given[-1]))
    epoch, curves = Epoch(1, 2.0, 2.0, 50.0, 1.0), tmp_path / "curves.png"
    run: Any = SimpleNamespace(folder=tmp_path, history=[epoch], kept=epoch, start=None, config=Config())
    (tmp_path / "history.json").touch()
    os.utime(tmp_path / "history.json", (2000, 2000))
    tell_end(run)
    assert drawn == [curves]
    curves.touch()
    for time, times in ((1000, 2), (3000, 2)):
        os.utime(curves, (time, time))
        tell_end(run)
        assert drawn == [curves] * times


@pytest.mark.parametrize(
    ("score", "told"), [(None, ""), (49.9, ""), (52.04, " (xe, which it began with, had 52.0)")], ids=str
)
def test_a_run_that_ended_worse_than_it_began_says_so(
    score: float | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("caplet_export.charts.plot_history", lambda *_: None)
    (tmp_path / "history.json").touch()
    epoch, start = Epoch(1, 2.0, 2.0, 50.0, 1.0), Stage("xe", 1, 3, 2, score, None, {})
    run: Any = SimpleNamespace(folder=tmp_path, history=[epoch], kept=epoch, start=start, config=Config())
    tell_end(run)
    assert capsys.readouterr().out == f"kept epoch 1: dev CIDEr-D 50.0{told}; weights in {tmp_path}\n"


@pytest.mark.parametrize("patience", [0, 3])
def test_what_is_kept_is_told_and_drawn(
    patience: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With patience the best epoch, without it the last, which is not called the best."""
    history = [Epoch(number, 2.0, 2.0, dev_cider, 1.0) for number, dev_cider in ((1, 50.0), (2, 60.0), (3, 40.0))]
    marks: list[str] = []
    save = Figure.savefig

    def marked(figure: Figure, *arguments: Any, **options: Any) -> None:
        marks.extend(text.get_text() for text in figure.axes[1].texts)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", marked)
    for done in range(1, 4):
        kept = max(history[:done], key=lambda epoch: epoch.dev_cider) if patience else history[done - 1]
        config = Config(train=TrainConfig(patience=patience))
        tell_epoch(SimpleNamespace(history=history[:done], kept=kept, folder=tmp_path, config=config, example=None))
        os.utime(tmp_path / "curves.png", (1000, 1000))
    assert marks == (["50.0", "60.0", "60.0"] if patience else ["50.0", "60.0", "40.0"])
    said = [line.endswith("  best") for line in capsys.readouterr().out.splitlines()]
    assert said == ([True, True, False] if patience else [False] * 3)


def test_curves_that_were_drawn_a_moment_ago_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than an epoch of a few photos; the end of the run draws what is missing."""
    drawn: list[int] = []

    def draw(history: list[Epoch], _kept: Epoch, _objective: str, path: Path) -> None:
        drawn.append(len(history))
        path.touch()

    monkeypatch.setattr("caplet_export.charts.plot_history", draw)
    run: Any = SimpleNamespace(folder=tmp_path, config=Config(train=TrainConfig(patience=0)), start=None, example=None)
    history = [Epoch(number, 2.0, 2.0, 50.0, 0.1) for number in (1, 2, 3)]
    for done in (1, 2, 3):
        run.history, run.kept = history[:done], history[done - 1]
        tell_epoch(run)
    (tmp_path / "history.json").touch()
    assert drawn == [1]
    tell_end(run)
    assert drawn == [1, 3]


@pytest.mark.parametrize("verb", VERBS)
def test_help_needs_no_more_than_a_plain_installation(verb: str) -> None:
    script = f"""
import sys
from caplet_export.cli import main
sys.modules.update(dict.fromkeys(["tensorflow", "keras", "tf2onnx", "onnx", "matplotlib", "tqdm", "jax", "optax"]))
sys.exit(main(["{verb}", "--help"]))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith(f"usage: caplet-export {verb} ")


@pytest.mark.parametrize(("verb", "extra"), [("train --features f", "export"), ("tune --from r", "tune")])
def test_what_a_plain_installation_lacks_is_one_line(verb: str, extra: str) -> None:
    verb, *needed = verb.split()
    script = f"""
import sys
from caplet_export.cli import main
sys.modules["tqdm"] = None  # as if it was not installed
sys.exit(main({[verb, "folder", "--data", "data", *needed]}))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    expected = f"caplet-export {verb}: tqdm is missing; pip install 'caplet[{extra}]'\n"
    assert (process.returncode, process.stdout, process.stderr) == (1, "", expected)
