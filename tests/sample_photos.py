"""The sample photos by name, without their folder."""

from __future__ import annotations

NAMES = ("astronaut", "cameraman", "cat", "coffee", "rocket")
IN_COLOUR = tuple(name for name in NAMES if name != "cameraman")
