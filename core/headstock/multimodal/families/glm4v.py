"""GLM-4.1V, 4.5V, 4.6V and GLM-OCR: as Qwen2-VL, but bounds are of all pixels that patches have.

A video is a row of images, each with its time behind it.
"""

from __future__ import annotations

from headstock.multimodal.families.files import Files, Settings
from headstock.multimodal.families.qwen_vl import merged_patches
from headstock.multimodal.family import Family, VideoFamily
from headstock.multimodal.films import BY_LENGTH, BY_SECONDS

BEGIN, END = "<|begin_of_image|>", "<|end_of_image|>"
WORDS = {"begin": "", "lead": BEGIN, "between": "", "end": ""}
OLDER = {**WORDS, "trail": END + "{second}"}
NEWER = {**WORDS, "trail": END + "{time:.1f} seconds"}
NEWER_KINDS = ("glm46v", "glm_ocr")
"""Model types with the processor of GLM-4.6V, whatever their files call it."""


def read(files: Files) -> Family:
    """Return what is made of images and videos."""
    return merged_patches(files, patch_size=14, video=_video(files), is_counted=True)


def _video(files: Files) -> VideoFamily | None:
    """Return what is made of videos; None: no file says."""
    token_id, given = files.config.get("video_token_id"), files.video()
    if given is None or not isinstance(token_id, int):
        return None
    size: Settings = given.get("size") or {}
    scale, shift = files.scales(given)
    is_newer = files.model_type in NEWER_KINDS
    return VideoFamily(
        token_id=token_id,
        feature_id=files.token_id,
        sampling=BY_LENGTH if is_newer else BY_SECONDS,
        words=NEWER if is_newer else OLDER,
        fps=float(given.get("fps") or 2),
        max_seconds=float(given.get("max_duration") or 300),
        min_pixels=int(size.get("shortest_edge") or 112 * 112),
        max_pixels=int(size.get("longest_edge") or 28 * 28 * 2 * 30000),
        scale=scale,
        shift=shift,
    )
