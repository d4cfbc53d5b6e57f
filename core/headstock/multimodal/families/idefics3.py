"""Idefics3 and SmolVLM: tiles between words that say where they are, then all of an image."""

from __future__ import annotations

from headstock.multimodal.families.files import Files
from headstock.multimodal.family import Family, Tiles
from headstock.multimodal.tiles import SPLITS

WORDS = {
    "around": "<fake_token_around_image>",
    "whole": "<global-img>",
    "place": "<row_{row}_col_{column}>",
    "row_end": "\n",
    "before_whole": "\n",
}


def read(files: Files) -> Family:
    """Return what is made of images.

    Raises:
        CheckpointError: The processor's size is not the encoder's.
    """
    given, vision = files.image, files.vision
    side = int(vision.get("image_size") or 224)
    tile = given.get("max_image_size") or {"longest_edge": 364}
    if tile.get("longest_edge") != side:
        raise files.wrong(f"tiles have {tile}; the encoder takes {side} x {side}")
    longest = (given.get("size") or {"longest_edge": 4 * 364}).get("longest_edge")
    if not isinstance(longest, int):
        raise files.wrong(f"images are resized to {given.get('size')}, not to a longest_edge")
    scale, shift = files.scales()
    return Family(
        token_id=files.token_id,
        patch_size=int(vision.get("patch_size") or 32),
        frames=1,
        merge=int(files.config.get("scale_factor") or 2),
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 1),
        scale=scale,
        shift=shift,
        size=(side, side),
        tiles=Tiles(
            layout=SPLITS,
            words=WORDS,
            is_cut=given.get("do_image_splitting") is not False,
            longest=longest,
        ),
    )
