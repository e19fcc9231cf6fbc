"""Pictures of what was measured: the curves of a training run, and what each part of a recipe gave."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from caplet_export.outputs import whole_file

if TYPE_CHECKING:
    from caplet_export.runs import Epoch

_BLUE, _RED, _GREY = "#1f5fa8", "#d1495b", "#788898"  # a contrast of at least 3 with white, as WCAG asks
_MEASURED = re.compile(r"([+-]?\d+\.\d+) \(([+-]?\d+\.\d+) to ([+-]?\d+\.\d+)\)")
_INCHES_A_ROW = 0.22
_PANELS = {"CIDEr-D": "dev CIDEr-D (greedy)", "difference": "difference"}
"""Columns of an ablation's table that are drawn, and what is written below them."""


def plot_history(history: Sequence[Epoch], kept: Epoch, objective: str, path: Path) -> None:
    """Draw losses and dev CIDEr-D by epoch into a PNG, with a mark at the epoch that is kept. Raises OSError.

    The dev loss is cross-entropy. Only where `objective`, the run's `train.objective`, is that too, do both losses
    share a panel.
    """
    pyplot = _pyplot()
    epochs = [epoch.epoch for epoch in history]
    train, dev = [epoch.train_loss for epoch in history], [epoch.dev_loss for epoch in history]
    alike = objective == "cross_entropy"
    count = 2 if alike else 3
    figure, panels = pyplot.subplots(1, count, figsize=(4.5 * count, 3.5), constrained_layout=True)
    left, right = panels[-2:]
    if alike:
        left.plot(epochs, train, label="train", color=_GREY)
        left.plot(epochs, dev, label="dev", color=_BLUE)
        left.set(ylabel="loss")
        left.legend(frameon=False)
    else:
        panels[0].plot(epochs, train, color=_GREY)
        panels[0].set(ylabel=f"train loss ({objective.replace('_', '-')})")
        left.plot(epochs, dev, color=_BLUE)
        left.set(ylabel="dev loss (cross-entropy)")
    right.plot(epochs, [epoch.dev_cider for epoch in history], color=_BLUE)
    right.plot([kept.epoch], [kept.dev_cider], "o", color=_RED)
    right.annotate(f"{kept.dev_cider:.1f}", (kept.epoch, kept.dev_cider), xytext=(4, -12), textcoords="offset points")
    right.set(ylabel="dev CIDEr-D (greedy)")
    for axes in panels:
        axes.set(xlabel="epoch")
        axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def measured(cell: str) -> tuple[float, float, float] | None:
    """Value, low and high of its interval, in a cell such as `36.8 (34.2 to 39.5)`; None if it is no such cell."""
    found = _MEASURED.fullmatch(cell)
    return (float(found[1]), float(found[2]), float(found[3])) if found else None


def plot_ablations(tables: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw what each run of some ablations scored, and by how much it differs from the one it is compared with: hollow
    where that difference may be none.

    Args:
        tables: as `caplet-export ablation` writes them: `{"title": ..., "columns": [...], "rows": [[...], ...]}`.
        path: the PNG; one row of panels for each table.

    Returns:
        Whether it was drawn; not if no table has a score with its interval.

    Raises:
        OSError: it cannot be written.
    """
    drawn = [table for table in tables if _PANELS.keys() <= set(table["columns"]) and any(_points(table, "CIDEr-D"))]
    if not drawn:
        return False
    pyplot = _pyplot()
    heights = [len(table["rows"]) + 3 for table in drawn]
    figure, panels = pyplot.subplots(
        len(drawn),
        len(_PANELS),
        figsize=(9, _INCHES_A_ROW * sum(heights)),
        height_ratios=heights,
        sharey="row",
        squeeze=False,
        constrained_layout=True,
    )
    for table, pair in zip(drawn, panels, strict=True):
        # Names may have two dollar signs, between which Matplotlib would look for mathematics.
        pair[0].set_title(table["title"], loc="left", fontsize=10, parse_math=False)
        pair[0].set_yticks(range(len(table["rows"])), [row[0] for row in table["rows"]], fontsize=8, parse_math=False)
        pair[0].set_ylim(len(table["rows"]) - 0.5, -0.5)  # the first row on top
        for axes, (column, label) in zip(pair, _PANELS.items(), strict=True):
            for row, point in enumerate(_points(table, column)):
                if point:
                    value, low, high = point
                    axes.plot([low, high], [row, row], color=_GREY, linewidth=1.5, solid_capstyle="butt")
                    told = column == "CIDEr-D" or not low <= 0 <= high
                    axes.plot([value], [row], "o", color=_BLUE, markerfacecolor=None if told else "white", markersize=4)
            axes.set_xlabel(label, fontsize=8)
            axes.tick_params(axis="x", labelsize=8)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color="#e6e9ec")
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
        pair[1].axvline(0, color=_RED, linewidth=1)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    pyplot.close(figure)
    # A palette makes it a quarter as large; it goes into every wheel.
    Image.open(picture).convert("RGB").quantize(32, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)
    return True


def _points(table: Mapping[str, Any], column: str) -> list[tuple[float, float, float] | None]:
    place = table["columns"].index(column)
    return [measured(str(row[place])) for row in table["rows"]]


def _pyplot() -> Any:
    """Matplotlib's pyplot, drawing without a display; imported late, as it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
