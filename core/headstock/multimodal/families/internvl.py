"""InternVL 3 and 3.5: tiles in the shape that comes nearest the image's, then all of it."""

from __future__ import annotations

from headstock.multimodal.families.files import Files, first_of
from headstock.multimodal.family import Family, Tiles
from headstock.multimodal.tiles import CANVAS


def read(files: Files) -> Family:
    """Return what is made of images: tiles between two marks.

    Its processor cuts images whatever the settings of the image processor say.

    Raises:
        CheckpointError: The processor's size is not the encoder's.
    """
    given, size = files.image, files.size
    side = first_of(files.vision.get("image_size")) or 448
    if (size.get("height"), size.get("width")) != (side, side):
        raise files.wrong(f"tiles are resized to {size}; the encoder takes {side} x {side}")
    most = int(given.get("max_patches") or 12)
    scale, shift = files.scales()
    return Family(
        token_id=files.token_id,
        patch_size=first_of(files.vision.get("patch_size")) or 14,
        frames=1,
        merge=2,
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 3),
        scale=scale,
        shift=shift,
        size=(side, side),
        tiles=Tiles(
            layout=CANVAS,
            words=_marks(files),
            is_cut=most > 1,
            min_tiles=int(given.get("min_patches") or 1),
            max_tiles=most,
        ),
    )


def _marks(files: Files) -> dict[str, str]:
    """Return what stands before and behind an image's tokens."""
    named = files.other("tokenizer_config.json")
    return {
        "begin": str(named.get("start_image_token") or "<img>"),
        "end": str(named.get("end_image_token") or "</img>"),
    }
