"""The scores in README.md, from the default bundle's manifest: `python -m benchmarks.quality`."""

from __future__ import annotations

import json

from benchmarks.outputs import ROOT
from benchmarks.report import insert
from caplet.bundle import DEFAULT_BUNDLE
from caplet_export.card import render_summary


def with_scores(readme: str) -> str:
    """A README's text with the scores of the default bundle. Raises ValueError if it has no place for them."""
    manifest = json.loads((ROOT / "models" / DEFAULT_BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    return insert(readme, render_summary(manifest["metrics"], manifest["decoding"]), "metrics")


def main() -> None:
    """Rewrite the README's scores."""
    readme = ROOT / "README.md"
    readme.write_text(with_scores(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
