"""What the benchmark commands refuse, before anything is measured and in one line."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import operators, peers, product, report, spinning
from benchmarks.outputs import RESULTS, output_file
from caplet.arguments import count


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_a_count_is_a_whole_number_of_at_least_one(text: str) -> None:
    assert count("1") == 1
    with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 1"):
        count(text)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder that looks as if `prepare` had written it."""
    for name in ("photos/cat.jpg", "int8/manifest.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object, **__: object) -> None:
        raise AssertionError("measured")

    for module, name in ((peers, "compare"), (operators, "measure"), (product, "measure"), (product, "build_wheel")):
        monkeypatch.setattr(module, name, measure)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quick"], "give -o"),
        (["--engines", "litert"], "give -o"),
        (["--rest", "-1"], "--rest: -1.0"),
        (["--rest", "inf"], "--rest: inf"),
        (["--rounds", "0"], "--rounds: '0' is not"),
        (["-o", "/proc/nowhere/peers.json"], "cannot be written to"),
    ],
)
def test_the_comparison_refuses_impossible_numbers_files_and_parts(
    arguments: list[str], said: str, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        peers.main([str(prepared), *arguments])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_the_other_commands_refuse_too(prepared: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = ["--bundle", str(tiny_bundle)]
    for main, arguments, said in (
        (operators.main, [str(prepared), "--quick"], "give -o"),
        (operators.main, [str(prepared / "photos")], "no photos"),
        (peers.main, [str(prepared / "photos")], "no photos or no bundle"),
        (product.main, [*bundle, "--quick"], "give -o"),
        (product.main, ["--bundle", str(prepared / "gone")], "no such directory"),
        (product.main, [*bundle, "--wheel", str(prepared / "gone.whl")], "gone.whl: no such file"),
        (spinning.main, ["--runs", "0"], "'0' is not"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2 and said in capsys.readouterr().err, arguments


def test_all_engines_go_to_the_results_that_are_reported(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    assert output_file(parser, None, "peers.json", whole=True) == RESULTS / "peers.json"
    assert output_file(parser, tmp_path / "mine.json", "peers.json", whole=False) == tmp_path / "mine.json"
    assert not list(tmp_path.iterdir())


def test_other_results_leave_the_readme_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    shutil.copytree(RESULTS, tmp_path, ignore=shutil.ignore_patterns("*.md", "*.svg"), dirs_exist_ok=True)
    before = (report.ROOT / "README.md").stat().st_mtime_ns
    assert report.main(["--results", str(tmp_path)]) == 0
    assert "README" not in capsys.readouterr().out
    assert (report.ROOT / "README.md").stat().st_mtime_ns == before
    assert (tmp_path / "captions.svg").exists()
    assert (tmp_path / "results.md").read_bytes() == (RESULTS / "results.md").read_bytes()
    (tmp_path / "product.json").write_text(json.dumps({})[:-1])
    with pytest.raises(SystemExit):
        report.main(["--results", str(tmp_path)])
    assert "product.json: " in capsys.readouterr().err
