"""Charts show the figures they are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from caplet_export.ablation import COLUMNS
from caplet_export.charts import measured, plot_ablations, plot_history
from caplet_export.runs import Epoch


def table(*rows: tuple[str, str, str]) -> dict[str, Any]:
    """A table as `ablation` writes it, of run, score and difference."""
    rest = [""] * (len(COLUMNS) - 3)
    return {"title": "What each stage gave", "columns": list(COLUMNS), "rows": [[*row, *rest] for row in rows]}


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Gives the figure that was drawn last, which is closed only by the end of the test."""
    from matplotlib import pyplot

    closed: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(pyplot, "close", closed.append)
        yield pyplot.gcf
    assert closed == [pyplot.gcf()]
    pyplot.close()


def test_curves_are_those_of_both_losses_and_of_the_dev_score(tmp_path: Path, figure: Any) -> None:
    epochs = [Epoch(number, 3.0 - number, 3.5 - number, 30.0 / number, 1.0) for number in (1, 2)]
    (tmp_path / "curves.png").write_bytes(b"before")
    (tmp_path / "link").hardlink_to(tmp_path / "curves.png")
    plot_history(epochs, epochs[0], "cross_entropy", tmp_path / "curves.png")
    assert (tmp_path / "link").read_bytes() == b"before", "the old file stays until the new one is whole"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    losses, scores = ([line.get_xydata().tolist() for line in axes.lines] for axes in figure().axes)
    assert losses == [[[1, 2.0], [2, 1.0]], [[1, 2.5], [2, 1.5]]]
    assert scores == [[[1, 30.0], [2, 15.0]], [[1, 30.0]]]
    left, right = figure().axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["train", "dev"]
    assert [axes.get_ylabel() for axes in (left, right)] == ["loss", "dev CIDEr-D (greedy)"]
    assert [(text.get_text(), text.xy) for text in right.texts] == [("30.0", (1, 30.0))]


@pytest.mark.parametrize("objective", ["self_critical", "distillation"])
def test_a_loss_that_is_no_cross_entropy_has_a_panel_of_its_own(objective: str, tmp_path: Path, figure: Any) -> None:
    epochs = [Epoch(number, -number, 3.0 + number, 30.0 * number, 1.0) for number in (1, 2)]
    plot_history(epochs, epochs[1], objective, tmp_path / "curves.png")
    drawn = {axes.get_ylabel(): [line.get_xydata().tolist() for line in axes.lines] for axes in figure().axes}
    assert drawn == {
        f"train loss ({objective.replace('_', '-')})": [[[1, -1], [2, -2]]],
        "dev loss (cross-entropy)": [[[1, 4], [2, 5]]],
        "dev CIDEr-D (greedy)": [[[1, 30], [2, 60]], [[2, 60]]],
    }
    assert [axes.get_xlabel() for axes in figure().axes] == ["epoch"] * 3


def test_cells_of_ablation_are_read() -> None:
    assert measured("36.8 (34.2 to 39.5)") == (36.8, 34.2, 39.5)
    assert measured("-0.4 (-2.1 to +1.2)") == (-0.4, -2.1, 1.2)
    assert measured("") is None
    assert measured("36.8") is None
    assert measured("36.8 (34.2 to 39.5)*") is None


def test_every_run_has_a_row_with_its_values_and_intervals(tmp_path: Path, figure: Any) -> None:
    rows = [
        ("first", "40.3 (37.6 to 43.5)", ""),
        ("better", "45.1 (42.1 to 48.3)", "+4.8 (+3.1 to +6.5)"),
        ("as good", "39.9 (37.2 to 42.8)", "-0.4 (-2.1 to +1.2)"),
        ("silent", "0.0 (0.0 to 0.0)", "-40.3 (-43.5 to +0.0)"),
        ("$\\barely$", "41.3 (37.6 to 45.5)", "+1.0 (+0.0 to +2.0)"),
    ]
    assert plot_ablations([table(*rows)], tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as chart:
        assert (chart.format, chart.mode) == ("PNG", "P")
    scores, differences = figure().axes
    assert [label.get_text() for label in scores.get_yticklabels()] == [row[0] for row in rows]
    top, bottom = scores.get_ylim()
    assert top > 4 > 0 > bottom  # the first row is drawn above the others
    assert differences.get_ylim() == (top, bottom)
    assert [axes.get_xlabel() for axes in (scores, differences)] == ["dev CIDEr-D (greedy)", "difference"]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in scores.lines]
    assert lines[:4] == [([37.6, 43.5], [0, 0]), ([40.3], [0]), ([42.1, 48.3], [1, 1]), ([45.1], [1])]
    dots = [line for line in differences.lines if len(line.get_xdata()) == 1]
    drawn = [(line.get_xdata()[0], line.get_ydata()[0], line.get_markerfacecolor() == "white") for line in dots]
    assert drawn == [(4.8, 1, False), (-0.4, 2, True), (-40.3, 3, True), (1.0, 4, True)]
    assert list(differences.lines[-1].get_xdata()) == [0, 0]
    assert not any(line.get_markerfacecolor() == "white" for line in scores.lines)


def test_each_table_has_a_row_of_panels(tmp_path: Path, figure: Any) -> None:
    one = table(("first", "40.3 (37.6 to 43.5)", ""))
    other = {**table(("short", "20.0 (19.0 to 21.0)", "")), "title": "What each switch gives alone"}
    assert plot_ablations([one, other], tmp_path / "chart.png")
    assert [axes.get_title(loc="left") for axes in figure().axes] == [one["title"], "", other["title"], ""]


@pytest.mark.parametrize(
    "tables",
    [
        [],
        [table()],
        [table(("first", "40.3", ""))],
        [{**table(), "columns": ["run"]}],
        [{**table(), "rows": [[40.3] * len(COLUMNS)]}],
    ],
)
def test_without_scores_nothing_is_drawn(tables: list[dict[str, Any]], tmp_path: Path) -> None:
    assert not plot_ablations(tables, tmp_path / "chart.png")
    assert not list(tmp_path.iterdir())
