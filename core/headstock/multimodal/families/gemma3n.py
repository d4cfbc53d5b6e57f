"""Gemma 3n: every image becomes one square, and as many tokens between two marks."""

from __future__ import annotations

from headstock.multimodal.families.files import Files
from headstock.multimodal.family import Family, Written

PATCH = 48
"""Pixels in height and width that become a token."""


def read(files: Files) -> Family:
    """Return what is made of images.

    Raises:
        CheckpointError: The processor's size is not the encoder's.
    """
    given, config = files.image, files.config
    side = round(int(config.get("vision_soft_tokens_per_image") or 256) ** 0.5) * PATCH
    if (files.size.get("height"), files.size.get("width")) != (side, side):
        raise files.wrong(
            f"images are resized to {dict(files.size)}; the encoder takes {side} x {side}"
        )
    begin_id = int(config.get("boi_token_id") or 255_999)
    end_id = int(config.get("eoi_token_id") or 262_144)
    factor = float(given.get("rescale_factor") or 1 / 255)
    scale, shift = (factor, factor, factor), (0.0, 0.0, 0.0)
    if given.get("do_normalize") is not False:
        scale, shift = files.scales()
    return Family(
        token_id=files.token_id,
        patch_size=PATCH,
        frames=1,
        merge=1,
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 2),
        scale=scale,
        shift=shift,
        size=(side, side),
        written=Written(files.token_id, (begin_id, files.token_id, end_id), around="\n\n"),
    )
