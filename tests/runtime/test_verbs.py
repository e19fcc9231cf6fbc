"""`caplet info`, `caplet check` and `caplet bench`, as text and as JSON."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import PIL
import pytest

import caplet
from caplet import CapletError, Captioner, InferenceError
from caplet.bench_command import _fresh_start
from caplet.machine import describe_cpu, versions
from command_line import needs_pipes, run
from tiny_bundle import rehash, write_tiny_bundle


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


# info


def test_info_tells_what_runs_here(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rehash(bundle, lambda manifest: manifest["preprocessing"].update(width=160, height=120))
    manifest = json.loads((bundle / "manifest.json").read_text())
    monkeypatch.chdir(bundle.parent)
    status, out, _ = run("info", "--model", "bundle", "--json", "--threads", 3, capfd=capfd)
    assert status == 0
    assert json.loads(out) == {
        "versions": {
            "caplet": caplet.__version__,
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        "model": {
            "name": "tiny-6",
            "path": str(bundle),
            "sha256": hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest(),
            "created_with": manifest["created_with"],
            "vocabulary": 36,
            "photo_size": [160, 120],
            "decoding": manifest["decoding"],
        },
        "license": manifest["license"],
        "files": manifest["files"],
        "metrics": manifest["metrics"],
        "provenance": {"seed": 6},
        "cpu": describe_cpu(),
        "threads": {"count": 3, "reason": "as asked"},
    }


def test_info_as_text(bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        scores = {"cider_d": 69.46, "bleu_4": 26.83, "rouge_l": 50.93}
        results = {"1": {"scores": dict.fromkeys(scores, 1.0)}, "3": {"scores": dict.fromkeys(scores, 3.0)}}
        manifest["metrics"] = {"split": "dev", "images": 1000, "results": {**results, "5": {"scores": scores}}}
        manifest["decoding"]["beam_size"] = 5
        manifest["created_with"] = {"caplet": "0.1.0", "onnx": "1.16"}

    cpu = {"name": "", "architecture": "riscv64", "cpus": 8, "features": []}
    monkeypatch.setattr("caplet.info_command.describe_cpu", lambda: cpu)
    monkeypatch.setattr("caplet.info_command.versions", lambda: {"caplet": "0.2.0", "numpy": "2.1"})
    rehash(bundle, edit)
    manifest = (bundle / "manifest.json").read_bytes()
    files = json.loads(manifest)["files"].items()
    rows = {
        "versions": "caplet 0.2.0, numpy 2.1",
        "model": "tiny-6, 36 words in the vocabulary",
        "path": str(bundle),
        "sha256": hashlib.sha256(manifest).hexdigest(),
        "created with": "caplet 0.1.0, onnx 1.16",
        "search": "beam 5, at most 12 words",
        "license of weights": "CC0-1.0 (random numbers)",
        "license of data": "none",
        **{f"file {name}": f"{entry['bytes']:,} bytes, {entry['sha256']}" for name, entry in files},
        "scores": "CIDEr-D 69.5, BLEU-4 26.8, ROUGE-L 50.9 on 1000 photos of the dev split",
        "CPU": "unknown (riscv64, 8 CPUs)",
        "CPU features": "unknown",
        "threads": "3 (as asked)",
    }
    status, text, _ = run("info", "--model", bundle, "--threads", 3, capfd=capfd)
    assert status == 0
    assert text == "".join(f"{name:<24}{value}\n" for name, value in rows.items())


@pytest.mark.parametrize("value", [10**400, "high", None], ids=type)
def test_scores_that_cannot_be_shown_are_left_out(value: Any, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def score(manifest: dict[str, Any]) -> None:
        scores = dict.fromkeys(["cider_d", "bleu_4", "rouge_l"], value)
        manifest["metrics"] = {"split": "dev", "images": 1, "results": {"3": {"scores": scores}}}

    rehash(bundle, score)
    status, text, err = run("info", "--model", bundle, capfd=capfd)
    assert (status, err) == (0, "")
    assert "none for the default search\n" in text


def test_info_without_a_model_tells_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """For a report of the error; JSON is all or nothing, since programs read it."""
    cpu = {"name": "Some CPU", "architecture": "x86_64", "cpus": 8, "features": ["avx2", "fma"]}
    monkeypatch.setattr("caplet.info_command.describe_cpu", lambda: cpu)
    status, out, err = run("info", "--model", tmp_path / "nowhere", capfd=capfd)
    assert (status, err.count("\n")) == (1, 1)
    told = dict(line.split("  ", 1) for line in out.splitlines())
    assert list(told) == ["versions", "CPU", "CPU features", "threads"]
    assert told["versions"].strip().startswith(f"caplet {caplet.__version__}, ")
    assert told["CPU"].strip() == "Some CPU (x86_64, 8 CPUs)"
    assert told["CPU features"] == "avx2 fma"
    status, out, err = run("info", "--model", tmp_path / "nowhere", "--json", capfd=capfd)
    assert (status, out, err.count("\n")) == (1, "", 1)


def test_the_strings_of_a_bundle_forge_no_rows(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    forged = "x\nmodel  forged\x1b[31m\ud800"

    def forge(manifest: dict[str, Any]) -> None:
        manifest["license"].update({"data": forged, forged: "text"})
        manifest["created_with"][forged] = forged
        scores = {"cider_d": 1, "bleu_4": 2, "rouge_l": 3}
        manifest["metrics"] = {"results": {"3": {"scores": scores}}, "images": forged, "split": forged}

    lines = run("info", "--model", bundle, capfd=capfd)[1].count("\n")
    rehash(bundle, forge)
    status, out, err = run("info", "--model", bundle, capfd=capfd)
    assert (status, err, out.count("\n")) == (0, "", lines + 1)
    assert out.replace("\n", "").isprintable()
    assert out.count("forged\\x1b[31m\\ud800") == 6


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        ("model name\t: A\nflags\t\t: sse avx2 fma\n\nmodel name\t: B\nflags\t: avx512f\n", "A", ["avx2", "fma"]),
        ("Features\t: fp asimd asimddp\n", "", ["asimd", "asimddp"]),
        ("Features\t: fp asimd\n\nModel\t\t: Raspberry Pi 4\n", "Raspberry Pi 4", ["asimd"]),
        ("", None, []),
    ],
)
def test_the_cpu_as_linux_describes_it(text: str, name: str | None, features: list[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    cpu = describe_cpu(tmp_path / "cpuinfo")
    assert cpu["features"] == features
    assert name is None or cpu["name"] == name
    for unreadable in (tmp_path / "nowhere", tmp_path):
        assert describe_cpu(unreadable)["features"] == []


# check


def test_check_repeats_the_golden_captions(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("check", "--model", bundle, capfd=capfd)
    assert status == 0
    assert "3 of 3 golden captions are the same" in out
    report = json.loads(run("check", "--model", bundle, "--json", capfd=capfd)[1])
    golden = json.loads((bundle / "manifest.json").read_text())["golden"]
    assert report["ok"]
    assert report["files_verified"] == 7
    for found, expected in zip(report["golden"], golden, strict=True):
        assert found["text"] == found["expected"] == expected["text"]
        assert found["beam_size"] == expected["beam_size"]
        assert f"{expected['file']}, beam {expected['beam_size']}: {expected['text']} (score" in out
        assert found["score"] == pytest.approx(expected["score"], abs=1e-4)


def test_check_says_which_caption_differs_and_by_how_much(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photo = "golden/cat.png"
    expected = [(1, "a cat", -1.0), (2, "a cat", -1.0), (3, "a cat", -1.0), (16, "a cat", -1.0)]
    here = {1: ("a cat", -1.0938), 2: ("a dog", -1.00004), 3: ("a cat", -1.1016), 16: ("a cat", -0.8984)}
    golden = [{"file": photo, "beam_size": beam, "text": text, "score": score} for beam, text, score in expected]
    rehash(bundle, lambda manifest: manifest.update(golden=[{"source": "none", **entry} for entry in golden]))

    def caption(captioner: Captioner, image: Path, *, beam_size: int) -> SimpleNamespace:
        assert (image, captioner.threads) == (bundle / photo, 3)
        return SimpleNamespace(text=here[beam_size][0], score=here[beam_size][1])

    monkeypatch.setattr(Captioner, "caption", caption)
    status, out, _ = run("check", "--model", bundle, "--threads", 3, capfd=capfd)
    assert status == 1
    assert out.splitlines() == [
        "tiny-6: 7 files are as the manifest says",
        "same     golden/cat.png, beam 1: a cat (score -1.0938, -0.0938)",
        "DIFFERS  golden/cat.png, beam 2: 'a dog' instead of 'a cat' (score -1.0000, +0.0000)",
        "DIFFERS  golden/cat.png, beam 3: 'a cat' with another score (score -1.1016, -0.1016)",
        "DIFFERS  golden/cat.png, beam 16: 'a cat' with another score (score -0.8984, +0.1016)",
        "1 of 4 golden captions are the same",
    ]
    status, out, _ = run("check", "--model", bundle, "--threads", 3, "--json", capfd=capfd)
    assert status == 1
    fields = ("file", "beam_size", "expected", "text", "expected_score", "score", "same")
    assert json.loads(out) == {
        "model": "tiny-6",
        "model_sha256": hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest(),
        "files_verified": 7,
        "golden": [
            dict(zip(fields, (photo, beam, text, here[beam][0], score, here[beam][1], beam == 1), strict=True))
            for beam, text, score in expected
        ],
        "ok": False,
    }


@pytest.mark.parametrize("verb", ["check", "info"])
def test_an_altered_file_is_found(verb: str, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (bundle / "golden" / "cat.png").open("ab") as file:
        file.write(b"x")
    status, out, err = run(verb, "--model", bundle, "--json", capfd=capfd)
    assert (status, out) == (1, "")
    assert err.startswith(f"caplet: {bundle / 'golden' / 'cat.png'}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("remedy", "told"),
    [("run `caplet check`", "export the bundle again, or open an issue"), ("free some", "free some")],
)
def test_check_does_not_advise_to_run_check(
    remedy: str, told: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise InferenceError("decoder", "gives no usable probabilities", remedy)

    monkeypatch.setattr("caplet.sessions.Sessions.step", fail)
    status, out, err = run("check", "--model", bundle, capfd=capfd)
    assert (status, out, err) == (1, "", f"caplet: decoder: gives no usable probabilities; {told}\n")


def test_check_of_a_golden_caption_that_the_decoder_cannot_search_for(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rehash(bundle, lambda manifest: manifest["golden"][2].update(beam_size=17))
    status, out, err = run("check", "--model", bundle, capfd=capfd)
    assert (status, out) == (1, "")
    said = f"{bundle}: a golden caption's beam_size is above the decoder's limit of 16; export the bundle again"
    assert err == f"caplet: {said}\n"


# bench


@pytest.fixture(scope="module")
def report(tiny_bundle: Path, photos: Path) -> dict[str, Any]:
    """A whole run, with the sweep, as JSON."""
    command = [sys.executable, "-m", "caplet", "bench", str(photos / "cat.jpg"), "--model", str(tiny_bundle)]
    process = subprocess.run(
        [*command, "--runs", "5", "--sweep", "--threads", "2", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=-1,
        check=True,
    )
    return dict(json.loads(process.stdout))


def test_bench_tells_what_it_measured(report: dict[str, Any], tiny_bundle: Path, photos: Path) -> None:
    told = {
        "versions": versions(),
        "cpu": describe_cpu(),
        "model": "tiny-6",
        "model_sha256": hashlib.sha256((tiny_bundle / "manifest.json").read_bytes()).hexdigest(),
        "photo": str(photos / "cat.jpg"),
        "beam_size": 3,
        "threads": {"count": 2, "reason": "as asked"},
        "runs": 5,
    }
    assert {name: report[name] for name in told} == told


def test_bench_measures_every_stage(report: dict[str, Any]) -> None:
    assert list(report["stages"]) == ["decode", "encode", "step", "search", "total"]
    for stage in report["stages"].values():
        assert 0 < stage["p50"] <= stage["p90"] <= stage["p99"]
    assert report["stages"]["step"]["mean"] < report["stages"]["search"]["mean"]  # since it is made of steps
    assert report["words"] > 0


def test_bench_measures_throughput_memory_and_the_start(report: dict[str, Any]) -> None:
    assert set(report["photos_per_second"]) == {"one_at_a_time", "batches_of_8"}
    assert all(rate > 1 for rate in report["photos_per_second"].values())
    assert 0 < report["cpu_seconds_per_photo"] < 5
    assert 0.05 < report["first_caption_seconds"] < 60
    assert 30 < report["peak_rss_mb"] < 200  # this process, with its own imports, takes more


def test_bench_sweeps_threads_and_batches(report: dict[str, Any]) -> None:
    pairs = [(entry["threads"], entry["batch_size"]) for entry in report["sweep"]]
    assert pairs == [(threads, batch) for threads in (1, 2) for batch in (1, 4, 8)]
    assert all(entry["photos_per_second"] > 0 for entry in report["sweep"])


def test_bench_as_text_with_a_photo_of_the_model(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("bench", "--model", bundle, "--runs", 2, "--beam", 1, "--batch-size", 2, "--threads", 1, "--sweep")
    status, out, err = run(*arguments, capfd=capfd)
    assert (status, err) == (0, "")
    assert str(Path("golden/cat.png")) in out
    assert "beam 1" in out
    words = "decode,encode,step,search,total,batches of 2,first caption,peak memory,threads"
    assert all(word in out for word in words.split(","))


@pytest.mark.parametrize(("name", "value"), [("frozen", True), ("executable", "/app/python"), ("executable", None)])
def test_bench_in_an_app_starts_no_other_process(
    name: str, value: object, bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be the app once more, not Python; Nuitka's apps name an executable that is not there."""
    monkeypatch.setattr(sys, name, value, raising=False)
    monkeypatch.setattr(subprocess, "run", None)
    status, out, err = run("bench", "--model", bundle, "--runs", 1, "--threads", 1, capfd=capfd)
    assert (status, err) == (0, "")
    assert " 1 thread (" in out and ", 1 run\n" in out
    assert "CPU time per photo" in out and "first caption" not in out and "peak memory" not in out


@pytest.mark.parametrize(
    ("peaks", "memory", "name", "named"),
    [
        ((90_000, 125_000, 100_000), "peak memory of a process with one caption: 128 MB\n", "Some CPU", "Some CPU"),
        ((0, 0, 0), "", "", "riscv64"),
    ],
    ids=["linux", "elsewhere"],
)
def test_bench_by_a_known_clock(
    peaks: tuple[int, ...],
    memory: str,
    name: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Measured run `i` takes a base plus a multiple of `i²` milliseconds; each warm-up takes a second."""
    now = cpu = 0.0
    photo, runs = "a\nphoto.jpg", 11
    batches: list[tuple[int, int]] = []

    def spend(milliseconds: float) -> None:
        nonlocal now
        now += milliseconds / 1000

    def durations(base: float, multiple: float, warm_ups: int = 3) -> Iterator[float]:
        return itertools.chain([1000.0] * warm_ups, (base + multiple * number**2 for number in range(runs)))

    decode, encode, total = durations(1, 0.5), durations(10, 2), durations(50, 1, warm_ups=4)
    steps, searches, processors = durations(2, 0.5), durations(4, 0), durations(80, 3, warm_ups=4)

    def load_pixels(source: str, *, size: tuple[int, int]) -> Any:
        assert (source, size) == (photo, (96, 64))
        spend(next(decode))
        return np.zeros((64, 96, 3), np.uint8)

    def search(step: Any, encoded: Any, decoding: Any) -> None:
        assert decoding.beam_size == 2
        spend(next(searches))
        step(*encoded)

    def caption(_: Captioner, source: str, *, beam_size: int = 3) -> SimpleNamespace:
        nonlocal cpu
        assert source == photo
        spend(next(total))
        cpu += next(processors) / 1000
        return SimpleNamespace(words=("a",) * beam_size, text="a" * 99)

    def caption_many(
        captioner: Captioner, sources: Iterable[str], *, batch_size: int, beam_size: int
    ) -> Iterator[None]:
        assert beam_size == 2
        count = list(sources).count(photo)
        batches.append((batch_size, count))
        spend(9999 if len(batches) % 2 else 1000 * count / (captioner.threads * batch_size))
        yield

    starts = iter(zip((3.0, 1.0, 2.25), peaks, strict=True))

    def start(*_: Any, **__: Any) -> SimpleNamespace:
        seconds, peak = next(starts)
        spend(1000 * seconds)
        end = b"\r\n" if peak % 2 else b"\n"  # as on Windows
        return SimpleNamespace(returncode=0, stderr=b"peak kilobytes: %d" % peak + end)

    clock = SimpleNamespace(perf_counter=lambda: now, process_time=lambda: cpu)
    monkeypatch.setattr("caplet.bench_command.time", clock)
    monkeypatch.setattr("caplet.bench_command.subprocess", SimpleNamespace(run=start, DEVNULL=subprocess.DEVNULL))
    monkeypatch.setattr("caplet.bench_command.describe_cpu", lambda: {"name": name, "architecture": "riscv64"})
    monkeypatch.setattr("caplet.bench_command.versions", lambda: {"onnxruntime": "1.99"})
    monkeypatch.setattr("caplet.bench_command.load_pixels", load_pixels)
    monkeypatch.setattr("caplet.bench_command.search", search)
    monkeypatch.setattr("caplet.sessions.Sessions.encode", lambda *_: spend(next(encode)) or ("token",) * 4)
    monkeypatch.setattr("caplet.sessions.Sessions.step", lambda *_: spend(next(steps)))
    monkeypatch.setattr(Captioner, "caption", caption)
    monkeypatch.setattr(Captioner, "caption_many", caption_many)

    expected = f"""\
tiny-6 on {named}, 3 threads (as asked), onnxruntime 1.99
a\\nphoto.jpg: 2 words, beam 2, 11 runs

milliseconds        p50      p90      p99
decode            13.50    41.50    50.05
encode            60.00   172.00   206.20
step              14.50    42.50    51.05
search            18.50    46.50    55.05
total             75.00   131.00   148.10

one at a time: 11.8 photos a second
batches of 2: 6.0 photos a second
CPU time per photo: 185.0 ms
process start to first caption: 2.25 s
{memory}
threads  batch  photos a second
      1      1              1.0
      1      4              4.0
      1      8              8.0
      2      1              2.0
      2      4              8.0
      2      8             16.0
      3      1              3.0
      3      4             12.0
      3      8             24.0
"""
    write_tiny_bundle(tmp_path, width=96, height=64)
    options = ("--threads", 3, "--beam", 2, "--batch-size", 2, "--runs", runs, "--sweep")
    status, out, err = run("bench", photo, "--model", tmp_path, *options, capfd=capfd)
    assert (status, err) == (0, "")
    assert out == expected
    # A first batch that is not timed, then as many photos as --runs, but at least four batches.
    assert batches == [(2, 2), (2, 11)] + [(1, 1), (1, 11), (4, 4), (4, 16), (8, 8), (8, 32)] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_bench_starts_a_process_of_the_same_caplet_with_the_same_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for caplet that tells its arguments, and frees most of its memory before it ends."""
    (tmp_path / "caplet").mkdir()
    (tmp_path / "caplet" / "__init__.py").touch()
    (tmp_path / "caplet" / "cli.py").write_text(
        "from pathlib import Path\n"
        "def main(arguments):\n"
        "    len(b'x' * 100_000_000)\n"
        "    Path(__file__).with_name('given').write_text(' '.join(arguments))\n"
        "    return 3 * (arguments[-1] == 'gone')\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("caplet.bench_command._FRESH_STARTS", 1)
    for options, photo, given in [
        ({"model": "-m", "threads": 2, "beam": 5}, "-a.jpg", "--model=-m --threads=2 --beam=5 -- -a.jpg"),
        ({"model": None, "threads": None, "beam": None}, "-", "-- ./-"),
    ]:
        report = _fresh_start(argparse.Namespace(**options), photo)
        assert (tmp_path / "caplet" / "given").read_text() == given
        assert 100 < (report["peak_rss_mb"] or 0) < 200
    with pytest.raises(CapletError, match="exit status 3"):
        _fresh_start(argparse.Namespace(**options), "gone")


@pytest.mark.parametrize("problem", ["photo", "model", "no golden"])
def test_bench_of_what_is_not_there(problem: str, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["nowhere.jpg"] if problem == "photo" else []
    model = bundle / "nowhere" if problem == "model" else bundle
    if problem == "no golden":
        rehash(bundle, lambda manifest: manifest.update(golden=[]))
    status, out, err = run("bench", *arguments, "--model", model, "--runs", 1, capfd=capfd)
    assert (status, out, err.count("\n")) == (2 if problem == "no golden" else 1, "", 1)
    assert problem != "photo" or err == "caplet: nowhere.jpg: no such file; check the path\n"


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        (("--beam", 17), "beam_size: 17 is not"),
        (("--batch-size", 5000), "batch_size: 5000 is not"),
        (("--threads", 5000), "threads: 5000 is not"),
    ],
)
def test_bench_refuses_a_number_by_its_own_name_before_it_measures(
    options: tuple[Any, ...],
    subject: str,
    bundle: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("caplet.bench_command._fresh_start", None)
    status, out, err = run("bench", "--model", bundle, *options, capfd=capfd)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"caplet: {subject}")


def test_bench_of_no_model_names_the_model(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err = run("bench", bundle / "golden" / "cat.png", "--model", bundle / "nowhere", capfd=capfd)
    assert (status, err.startswith(f"caplet: {bundle / 'nowhere'}: no such directory")) == (1, True)


@needs_pipes
def test_bench_of_a_pipe_is_refused(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    status, _, err = run("bench", tmp_path / "pipe", "--model", bundle, capfd=capfd)
    assert (status, err) == (2, f"caplet: PHOTO: {tmp_path / 'pipe'} is not a file; give one\n")


def test_bench_of_a_name_that_no_file_can_have_says_what_its_caption_would(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = 300 * "a"
    told = run("bench", name, "--model", bundle, capfd=capfd)
    assert told == run(name, "--model", bundle, capfd=capfd)
    assert told[0] == 1


def test_bench_of_a_file_called_like_standard_input(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(bundle / "golden/cat.png", tmp_path / "-")
    monkeypatch.chdir(tmp_path)
    status, out, err = run("bench", "-", "--model", bundle, "--runs", 1, "--batch-size", 1, capfd=capfd)
    assert (status, err) == (0, "")
    assert "\n-: " in out


def test_bench_runs_nothing_from_the_current_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for module in ("numpy", "queue", "pathlib"):
        (tmp_path / f"{module}.py").write_text("open('executed', 'w')")
    shutil.copy(bundle / "golden" / "cat.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    status, out, err = run("bench", "cat.png", "--model", "bundle", "--runs", 1, "--batch-size", 1, capfd=capfd)
    assert (status, err) == (0, "")
    assert out.splitlines()[1].startswith("cat.png: ")
    assert not Path("executed").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_bench_by_a_python_whose_name_is_not_utf_8(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a long name may become in /proc/self/status, where it is cut after 15 bytes."""
    python = tmp_path / os.fsdecode(b"python\xff")
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr("caplet.bench_command._FRESH_STARTS", 1)
    status, out, err = run("bench", "--model", bundle, "--runs", 1, "--batch-size", 1, "--json", capfd=capfd)
    assert (status, err) == (0, "")
    assert json.loads(out)["peak_rss_mb"] > 30


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("print('no peak')", "exit status 0"),
        ("raise OSError('no memory')", "OSError: no memory"),
        ("sys.exit('caplet: x: gone\\npeak kilobytes: 7')", "x: gone"),
    ],
)
def test_bench_says_so_if_a_new_process_gives_no_answer(
    program: str, told: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("caplet.bench_command._FRESH", program)
    status, out, err = run("bench", "--model", bundle, capfd=capfd)
    assert (status, out) == (1, "")
    assert err == f"caplet: bench: a new process gave no caption ({told})\n"
