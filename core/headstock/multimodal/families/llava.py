"""LLaVA 1.5: the square in the middle of an image, a token a patch. Pixtral: all of it, in rows."""

from __future__ import annotations

from headstock.multimodal.families import mistral3
from headstock.multimodal.families.files import Files
from headstock.multimodal.family import Family


def read(files: Files) -> Family:
    """Return what is made of images.

    Raises:
        CheckpointError: The processor's size is not the encoder's.
    """
    given, vision = files.image, files.vision
    if vision.get("model_type") == "pixtral":
        return mistral3.in_rows(files, merge=int(files.config.get("spatial_merge_size") or 1))
    side, patch_size = int(vision.get("image_size") or 336), int(vision.get("patch_size") or 14)
    size, crop = given.get("size") or {}, given.get("crop_size") or {}
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    cut = (crop.get("height"), crop.get("width")) if isinstance(crop, dict) else (crop, crop)
    if shortest != side or cut != (side, side) or given.get("do_center_crop") is False:
        raise files.wrong(
            f"images are resized to {size} and cut to {crop}; the encoder takes {side} x {side}"
        )
    scale, shift = files.scales()
    return Family(
        token_id=files.token_id,
        patch_size=patch_size,
        frames=1,
        merge=1,
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 3),
        scale=scale,
        shift=shift,
        size=(side, side),
        is_cropped=True,
    )
