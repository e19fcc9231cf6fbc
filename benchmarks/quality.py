"""The scores in README.md, from the default bundle's manifest: `python -m benchmarks.quality`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks.outputs import ROOT
from benchmarks.report import insert
from caplet.bundle import DEFAULT_BUNDLE
from caplet_export.card import render_summary


def with_scores(readme: str) -> str:
    """A README's text with the scores of the default bundle. Raises ValueError if it has no place for them."""
    manifest = json.loads((ROOT / "models" / DEFAULT_BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    return insert(readme, render_summary(manifest["metrics"], manifest["decoding"]), "metrics")


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the README's scores; returns the exit status."""
    argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__).parse_args(argv)
    readme = ROOT / "README.md"
    readme.write_text(with_scores(readme.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
