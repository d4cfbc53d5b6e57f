"""Kimi K2.5 to K2.7: an image keeps its size where it can, and is made up to whole tokens."""

from __future__ import annotations

from headstock.multimodal.families.files import Files, Settings
from headstock.multimodal.family import Family, Padded


def read(files: Files) -> Family:
    """Return what is made of images; the hub's files have their settings in an object.

    Raises:
        CheckpointError: An image is to have a number of tokens whatever its size.
    """
    inner = files.image.get("media_proc_cfg")
    given: Settings = inner if isinstance(inner, dict) else files.image
    size: Settings = given.get("size") or {}
    if given.get("fixed_output_tokens"):
        raise files.wrong(f"fixed_output_tokens is {given['fixed_output_tokens']}")
    side = given.get("patch_limit_on_one_side") or size.get("max_height") or 512
    if size.get("max_width", side) != side:
        raise files.wrong(f"size is {size}; height and width have one bound")
    scale, shift = files.scales(given)
    return Family(
        token_id=files.token_id,
        patch_size=int(given.get("patch_size") or 14),
        frames=1,
        merge=int(given.get("merge_kernel_size") or given.get("merge_size") or 2),
        min_pixels=0,
        max_pixels=0,
        resample=int(given.get("resample") or 3),
        scale=scale,
        shift=shift,
        padded=Padded(
            max_patches=int(given.get("in_patch_limit") or given.get("max_patches") or 16384),
            max_side=int(side),
        ),
    )
