"""The README's scores are those of the released bundle."""

from __future__ import annotations

import pytest

from benchmarks.quality import with_scores
from benchmarks.report import ROOT


def test_the_readme_holds_the_scores_of_the_released_bundle() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_scores(readme) == readme, "python -m benchmarks.quality"


def test_other_scores_are_replaced_and_nothing_else() -> None:
    text = with_scores("before\n<!-- metrics:begin -->\nstale\n<!-- metrics:end -->\nafter\n")
    assert text.startswith("before\n<!-- metrics:begin -->\n") and text.endswith("\n<!-- metrics:end -->\nafter\n")
    assert "| CIDEr-D |" in text and "stale" not in text
    with pytest.raises(ValueError, match="metrics"):
        with_scores("a README without scores")
