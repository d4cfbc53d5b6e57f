"""Mistral 3 and Pixtral: images as large as they are, in rows of tokens with marks after them."""

from __future__ import annotations

from headstock.multimodal.families.files import Files
from headstock.multimodal.family import Family


def read(files: Files) -> Family:
    """Return what is made of images."""
    return in_rows(files, merge=int(files.config.get("spatial_merge_size") or 2))


def in_rows(files: Files, *, merge: int) -> Family:
    """Return what is made of images by models with Pixtral's encoder.

    Args:
        files: Of the model.
        merge: Patches in height and width that become one token.
    """
    vision = files.vision
    named = files.other("processor_config.json")
    marks = [str(named.get(f"image_{n}_token") or f"[IMG_{n.upper()}]") for n in ("break", "end")]
    scale, shift = files.scales()
    return Family(
        token_id=files.token_id,
        patch_size=int(vision.get("patch_size") or 16),
        frames=1,
        merge=merge,
        min_pixels=0,
        max_pixels=0,
        resample=int(files.image.get("resample") or 3),
        scale=scale,
        shift=shift,
        longest=int(files.size.get("longest_edge") or vision.get("image_size") or 1024),
        row_marks=(marks[0], marks[1]),
    )
