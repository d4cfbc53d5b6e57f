"""Names of the ways to cut an image into tiles; :mod:`headstock.multimodal.tiles` has the ways."""

SPLITS = "splits"
CANVAS = "canvas"
FIT = "fit"
