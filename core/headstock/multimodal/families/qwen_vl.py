"""Qwen2-VL to Qwen3.5: images keep their aspect, and a token is made of a square of patches."""

from __future__ import annotations

from typing import cast

from headstock.multimodal.families.files import Files, Settings
from headstock.multimodal.family import Family, VideoFamily
from headstock.multimodal.films import GROUPED, SPREAD

PLAIN = ("qwen2_vl", "qwen2_5_vl")
"""Model types whose videos have neither marks nor times, but positions in time."""


def read(files: Files) -> Family:
    """Return what is made of images and videos."""
    video = plain_video(files) if files.model_type in PLAIN else timed_video(files)
    patch_size = 14 if files.model_type in PLAIN else 16
    return merged_patches(files, patch_size=patch_size, video=video)


def merged_patches(
    files: Files, *, patch_size: int, video: VideoFamily | None, is_counted: bool = False
) -> Family:
    """Return what is made of images by models that keep their aspect.

    Args:
        files: Of the model.
        patch_size: Pixels of a patch where no file says.
        video: What is made of videos.
        is_counted: As in :class:`headstock.multimodal.family.Family`.
    """
    given, size, vision = files.image, files.size, files.vision
    scale, shift = files.scales()
    return Family(
        token_id=files.token_id,
        patch_size=int(given.get("patch_size") or vision.get("patch_size") or patch_size),
        frames=int(given.get("temporal_patch_size") or vision.get("temporal_patch_size") or 2),
        merge=int(given.get("merge_size") or vision.get("spatial_merge_size") or 2),
        min_pixels=int(given.get("min_pixels") or size.get("shortest_edge") or 56 * 56),
        max_pixels=int(given.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280),
        resample=int(given.get("resample") or 3),
        scale=scale,
        shift=shift,
        video=video,
        is_counted=is_counted,
    )


def timed_video(files: Files) -> VideoFamily | None:
    """Return what is made of videos whose moments follow their times; None: no file says."""
    given = files.video()
    names = ("video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = [files.config.get(name) for name in names]
    if given is None or not all(isinstance(i, int) for i in ids):
        return None
    size: Settings = given.get("size") or {}
    scale, shift = files.scales(given)
    is_capped = bool(given.get("cap_pixels_per_frame"))
    token_id, *marks = cast("list[int]", ids)
    return VideoFamily(
        token_id=token_id,
        sampling=SPREAD,
        marks=(marks[0], marks[1]),
        fps=float(given.get("fps") or 2),
        min_frames=int(given.get("min_frames") or 4),
        max_frames=int(given.get("max_frames") or 768),
        min_pixels=int(size.get("shortest_edge") or 128 * 32 * 32),
        max_pixels=int(size.get("longest_edge") or 32 * 32 * 768),
        frame_tokens=int(given.get("max_video_tokens") or 768) if is_capped else None,
        scale=scale,
        shift=shift,
    )


def plain_video(files: Files) -> VideoFamily | None:
    """Return what Qwen2-VL and Qwen2.5-VL make of videos; None: they have no token for one.

    Older files have the settings of videos and those of images in one.
    """
    token_id, given = files.config.get("video_token_id"), files.video() or files.image
    if not isinstance(token_id, int):
        return None
    size: Settings = given.get("size") or {}
    scale, shift = files.scales(given)
    is_later = files.model_type == "qwen2_5_vl"
    return VideoFamily(
        token_id=token_id,
        sampling=GROUPED,
        fps=float(given.get("fps") or 2),
        min_frames=int(given.get("min_frames") or 4),
        max_frames=int(given.get("max_frames") or 768),
        min_pixels=int(given.get("min_pixels") or size.get("shortest_edge") or 128 * 28 * 28),
        max_pixels=int(given.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 768),
        scale=scale,
        shift=shift,
        is_plain=True,
        per_second=float(files.vision.get("tokens_per_second") or 4) if is_later else 0,
    )
