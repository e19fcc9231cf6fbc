"""The scores in README.md, from the default bundle's manifest: `python -m benchmarks.quality`."""

from __future__ import annotations

import json

from benchmarks.peers import ROOT
from benchmarks.report import insert
from caplet.bundle import DEFAULT_BUNDLE
from caplet_export.card import render_scores


def main() -> None:
    """Rewrite the README's scores."""
    manifest = json.loads((ROOT / "models" / DEFAULT_BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    table = render_scores(manifest["metrics"], manifest["decoding"])
    readme.write_text(insert(readme.read_text(encoding="utf-8"), table, "metrics"), encoding="utf-8")


if __name__ == "__main__":
    main()
