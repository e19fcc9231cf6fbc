"""What PyInstaller needs to know; it asks by the entry point `pyinstaller40`, and nothing else imports this."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """Where `hook-caplet.py` is."""
    return [str(Path(__file__).parent)]
