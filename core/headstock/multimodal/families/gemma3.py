"""Gemma 3: every image becomes one square, and as many tokens between two marks."""

from __future__ import annotations

from headstock.multimodal.families.files import Files
from headstock.multimodal.family import Family, Written


def read(files: Files) -> Family:
    """Return what is made of images.

    Raises:
        CheckpointError: The processor's size is not the encoder's, or images are to be cut up.
    """
    given, config, vision, size = files.image, files.config, files.vision, files.size
    if given.get("do_pan_and_scan"):
        raise files.wrong("do_pan_and_scan is true, and images are not cut into crops here")
    side, patch_size = int(vision.get("image_size") or 224), int(vision.get("patch_size") or 16)
    if (size.get("height"), size.get("width")) != (side, side):
        raise files.wrong(f"images are resized to {size}; the encoder takes {side} x {side}")
    per_side = round(int(config.get("mm_tokens_per_image") or 256) ** 0.5)
    begin_id = int(config.get("boi_token_index") or 255_999)
    end_id = int(config.get("eoi_token_index") or 256_000)
    scale, shift = files.scales()
    return Family(
        token_id=files.token_id,
        patch_size=patch_size,
        frames=1,
        merge=side // patch_size // per_side,
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 2),
        scale=scale,
        shift=shift,
        size=(side, side),
        written=Written(begin_id, (begin_id, files.token_id, end_id), around="\n\n"),
    )
