"""Kimi K2.5 to K2.7: an image keeps its size where it can, and is made up to whole tokens.

A video is a row of moments of a few frames, each with its time before it.
"""

from __future__ import annotations

from headstock.multimodal.families.files import Files, Settings
from headstock.multimodal.family import Family, Padded, VideoFamily
from headstock.multimodal.films import STEPPED

VIDEO = "<|kimi_k25_video_placeholder|>"
WORDS = {
    "begin": "",
    "lead": "{stamp}<|media_begin|>video<|media_content|>",
    "trail": "<|media_end|>",
    "between": "",
    "end": "",
}
"""Around the moments of a video."""
FRAMES = 4
"""Of a moment, where no file says."""


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
        video=_video(files, given if isinstance(inner, dict) else files.video()),
    )


def _video(files: Files, given: Settings | None) -> VideoFamily | None:
    """Return what is made of videos; None: no file says, or there is no token for one.

    Args:
        files: Of the model.
        given: Settings of its processor, which the hub's files have in one with those of images.

    Raises:
        CheckpointError: A moment has more frames than the encoder tells apart, or the settings ask
            for what is not computed.
    """
    token_id = files.config.get("video_token_id")
    token_id = token_id if isinstance(token_id, int) else files.added_id(VIDEO)
    if given is None or token_id is None:
        return None
    for key, known in (("in_patch_limit_video", None), ("timestamp_mode", "hh:mm:ss.fff")):
        if given.get(key) not in (None, known):
            raise files.wrong(f"{key} is {given[key]!r}")
    vision = files.vision
    frames = int(given.get("temporal_merge_kernel_size") or given.get("temporal_patch_size") or 0)
    frames = frames or FRAMES
    most = int(vision.get("pos_emb_time") or vision.get("init_pos_emb_time") or FRAMES)
    if frames > most:
        raise files.wrong(f"a moment has {frames} frames; the encoder takes {most}")
    size: Settings = given.get("size") or {}
    each = given.get("in_patch_limit_each_frame")
    if each is None and "media_proc_cfg" not in files.image:
        each = given.get("max_patches")
    scale, shift = files.scales(given)
    return VideoFamily(
        token_id=token_id,
        feature_id=files.token_id,
        sampling=STEPPED,
        words=WORDS,
        fps=float(given.get("sample_fps") or given.get("fps") or 2),
        max_frames=int(given.get("max_num_frames_each_video") or 0),
        padded=Padded(
            max_patches=int(each or 4096),
            max_side=int(given.get("patch_limit_on_one_side") or size.get("max_height") or 512),
        ),
        pooled=frames,
        scale=scale,
        shift=shift,
    )
