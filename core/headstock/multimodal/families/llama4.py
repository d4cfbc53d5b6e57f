"""Llama 4: tiles of the canvas that an image fits best, then all of it, with marks between."""

from __future__ import annotations

from headstock.multimodal.families.files import Files
from headstock.multimodal.family import Family, Tiles
from headstock.multimodal.layouts import FIT

WORDS = {
    "begin": "<|image_start|>",
    "beside": "<|tile_x_separator|>",
    "below": "<|tile_y_separator|>",
    "whole": "<|image|>",
    "end": "<|image_end|>",
}


def read(files: Files) -> Family:
    """Return what is made of images.

    In text stands another token for an image than those that have its features.

    Raises:
        CheckpointError: The processor's size is not the encoder's, or it enlarges images.
    """
    given, vision, size = files.image, files.vision, files.size
    side = int(vision.get("image_size") or 448)
    if (size.get("height"), size.get("width")) != (side, side):
        raise files.wrong(f"tiles are resized to {size}; the encoder takes {side} x {side}")
    if given.get("resize_to_max_canvas"):
        raise files.wrong("resize_to_max_canvas is true, and images are not enlarged here")
    scale, shift = files.scales()
    return Family(
        token_id=files.id_of(WORDS["whole"]),
        feature_id=files.token_id,
        patch_size=int(vision.get("patch_size") or 14),
        frames=1,
        merge=2,
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 2),
        scale=scale,
        shift=shift,
        size=(side, side),
        tiles=Tiles(layout=FIT, words=WORDS, max_tiles=int(given.get("max_patches") or 16)),
    )
