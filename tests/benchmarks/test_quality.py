"""The README's scores are those of the released bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import quality
from benchmarks.outputs import ROOT
from benchmarks.quality import with_scores


def test_the_readme_holds_the_scores_of_the_released_bundle() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_scores(readme) == readme, "python -m benchmarks.quality"


def test_other_scores_are_replaced_and_nothing_else() -> None:
    text = with_scores("before\n<!-- metrics:begin -->\nstale\n<!-- metrics:end -->\nafter\n")
    assert text.startswith("before\n<!-- metrics:begin -->\n") and text.endswith("\n<!-- metrics:end -->\nafter\n")
    assert "| CIDEr-D |" in text and "stale" not in text
    with pytest.raises(ValueError, match="metrics"):
        with_scores("a README without scores")


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--check", 2)])
def test_nothing_is_rewritten_for_help_or_an_unknown_option(
    argument: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "ROOT", tmp_path)  # where there is no README to read
    with pytest.raises(SystemExit) as stopped:
        quality.main([argument])
    assert stopped.value.code == status
