"""Names and sizes of the ways to cut images; :mod:`headstock.multimodal.tiles` has the ways."""

from __future__ import annotations

SPLITS = "splits"
CANVAS = "canvas"
FIT = "fit"
MAX_SIDE = 4096
"""Pixels of a side that images are resized to at most, before they are cut."""


def stretched(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return the size whose longer side has ``longest`` pixels, the other an even number."""
    ratio = width / height
    if width >= height:
        other = int(longest / ratio)
        return max(other + other % 2, 1), longest
    other = int(longest * ratio)
    return longest, max(other + other % 2, 1)
