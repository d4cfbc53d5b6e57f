"""Idefics3 and SmolVLM: tiles between words that say where they are, then all of an image.

SmolVLM sees videos as a row of frames, one tile each, with their times in words.
"""

from __future__ import annotations

from headstock.multimodal.families.files import Files, Settings
from headstock.multimodal.family import Family, Tiles, VideoFamily
from headstock.multimodal.films import INNER
from headstock.multimodal.layouts import MAX_SIDE, SPLITS

WORDS = {
    "around": "<fake_token_around_image>",
    "whole": "<global-img>",
    "place": "<row_{row}_col_{column}>",
    "row_end": "\n",
    "before_whole": "\n",
}

VIDEO = "<video>"
VIDEO_WORDS = {
    "begin": "You are provided the following series of {count} frames from a {length} [H:MM:SS]"
    " video.\n",
    "lead": "\nFrame from {clock}:" + WORDS["around"] + WORDS["whole"],
    "trail": WORDS["around"],
    "between": "",
    "end": "\n\n",
}
"""Around the frames of a video."""


def read(files: Files) -> Family:
    """Return what is made of images.

    Raises:
        CheckpointError: The processor's size is not the encoder's.
    """
    given, vision = files.image, files.vision
    side = int(vision.get("image_size") or 224)
    tile = given.get("max_image_size") or {"longest_edge": 364}
    if tile.get("longest_edge") != side:
        raise files.wrong(f"tiles have {tile}; the encoder takes {side} x {side}")
    longest = (given.get("size") or {"longest_edge": 4 * 364}).get("longest_edge")
    if not isinstance(longest, int):
        raise files.wrong(f"images are resized to {given.get('size')}, not to a longest_edge")
    scale, shift = files.scales()
    return Family(
        token_id=files.token_id,
        patch_size=int(vision.get("patch_size") or 32),
        frames=1,
        merge=int(files.config.get("scale_factor") or 2),
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 1),
        scale=scale,
        shift=shift,
        size=(side, side),
        tiles=Tiles(
            layout=SPLITS,
            words=WORDS,
            is_cut=given.get("do_image_splitting") is not False,
            longest=longest,
        ),
        video=_video(files, side) if files.model_type == "smolvlm" else None,
    )


def _video(files: Files, side: int) -> VideoFamily | None:
    """Return what SmolVLM makes of videos; None: no file says, or there is no token for one.

    Raises:
        CheckpointError: Frames have another size than the encoder's.
    """
    given = files.video() or files.image
    sampling: Settings = given.get("video_sampling") or {}
    token_id = files.added_id(VIDEO)
    if not sampling or token_id is None:
        return None
    tile = given.get("max_image_size") or {"longest_edge": 364}
    if tile.get("longest_edge") != side:
        raise files.wrong(f"frames have {tile}; the encoder takes {side} x {side}")
    size: Settings = sampling.get("video_size") or {}
    scale, shift = files.scales(given)
    return VideoFamily(
        token_id=token_id,
        feature_id=files.token_id,
        sampling=INNER,
        words=VIDEO_WORDS,
        fps=float(sampling.get("fps") or 1),
        max_frames=int(sampling.get("max_frames") or 64),
        size=(side, side),
        longest=min(int(size.get("longest_edge") or 4 * 364), MAX_SIDE),
        scale=scale,
        shift=shift,
    )
