"""LLaVA-Next and LLaVA-OneVision: a small picture of all of an image, and a mosaic of its parts.

A frame of a video is one tile, with a token for four of its patches.
"""

from __future__ import annotations

from typing import Any, cast

from headstock.multimodal.families.files import Files, Settings
from headstock.multimodal.family import Family, Mosaic, VideoFamily
from headstock.multimodal.films import STEPPED

NEXT_SIZES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Sizes of LLaVA-Next's mosaics where no file says."""
ANY_RESOLUTION = "anyres_max_"
"""Before the most tiles of a mosaic, in ``vision_aspect_ratio``."""


def read(files: Files) -> Family:
    """Return what is made of images.

    Raises:
        CheckpointError: The processor's sizes are not the encoder's.
    """
    given, is_next = files.image, files.model_type == "llava_next"
    side = int(files.vision.get("image_size") or (336 if is_next else 384))
    sizes = _sizes(files, side)
    scale, shift = files.scales()
    mean = files.channels(given, "image_mean")
    return Family(
        token_id=files.token_id,
        patch_size=int(files.vision.get("patch_size") or 14),
        frames=1,
        merge=1,
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 3),
        scale=scale,
        shift=shift,
        size=(side, side),
        mosaic=Mosaic(
            sizes=[(tall, wide) for tall, wide in sizes],
            max_tiles=None if is_next else _max_tiles(files),
            several=None if is_next else cast("Any", tuple(int(m * 255) for m in mean)),
        ),
        video=None if is_next else _video(files, side),
    )


def _video(files: Files, side: int) -> VideoFamily | None:
    """Return what LLaVA-OneVision makes of videos; None: no file says.

    Raises:
        CheckpointError: Frames have another size than the encoder's.
    """
    config, given = files.config, files.video()
    token_id = config.get("video_token_id", config.get("video_token_index"))
    if given is None or not isinstance(token_id, int):
        return None
    size: Settings = given.get("size") or {}
    if (size.get("height"), size.get("width")) != (side, side):
        raise files.wrong(f"frames are resized to {size}; the encoder takes {side} x {side}")
    scale, shift = files.scales(given)
    return VideoFamily(
        token_id=token_id,
        sampling=STEPPED,
        fps=float(given.get("fps") or 0),
        max_frames=int(given.get("num_frames") or 0),
        size=(side, side),
        is_halved=True,
        scale=scale,
        shift=shift,
    )


def _sizes(files: Files, side: int) -> list[list[int]]:
    """Return the heights and widths of mosaics of tiles of ``side`` pixels.

    Raises:
        CheckpointError: The processor's sizes are not the encoder's.
    """
    given, size = files.image, files.size
    crop = given.get("crop_size") or {}
    edges = {size.get(edge) for edge in ("height", "width", "shortest_edge")} - {None}
    if given.get("do_center_crop"):
        edges |= {crop.get("height"), crop.get("width")}
    if edges != {side}:
        raise files.wrong(f"tiles are resized to {size}; the encoder takes {side} x {side}")
    sizes = given.get("image_grid_pinpoints")
    if not sizes:
        sizes = NEXT_SIZES if files.model_type == "llava_next" else _all_sizes(side)
    if sizes != (files.config.get("image_grid_pinpoints") or sizes):
        raise files.wrong("config.json has other image_grid_pinpoints than the processor")
    if any(len(each) != 2 or min(each) < side or max(each) % side for each in sizes):
        raise files.wrong(f"image_grid_pinpoints are no multiples of {side}")
    return sizes


def _all_sizes(side: int) -> list[list[int]]:
    """Return the sizes of LLaVA-OneVision's mosaics where no file says: up to six tiles a side."""
    return [[side * tall, side * wide] for tall in range(1, 7) for wide in range(1, 7)]


def _max_tiles(files: Files) -> int:
    """Return the tiles that a mosaic's tokens are resampled to.

    Raises:
        CheckpointError: The configuration does otherwise.
    """
    given = str(files.config.get("vision_aspect_ratio") or "anyres_max_9")
    count = given.removeprefix(ANY_RESOLUTION)
    if not given.startswith(ANY_RESOLUTION) or not count.isdecimal() or int(count) < 1:
        raise files.wrong(f"vision_aspect_ratio is {given!r}, not {ANY_RESOLUTION} and a number")
    return int(count)
