"""Gemma 4: an image becomes as many tokens as there may be, in its aspect.

A video is a row of frames, each between an image's marks, with its time before them.
"""

from __future__ import annotations

from headstock.multimodal.families.files import Files, Settings
from headstock.multimodal.family import Family, VideoFamily, Written
from headstock.multimodal.films import STEPPED

FRAMES, FRAME_TOKENS = 32, 70
"""Frames of a video that are looked at, and most tokens of one, where no file says."""


def read(files: Files) -> Family:
    """Return what is made of images. Pixels go from -1 to 1, as the encoder itself brings them.

    Raises:
        CheckpointError: A processor's patches are not the encoder's, or it normalises pixels.
    """
    given, config = files.image, files.config
    if given.get("do_normalize"):
        raise files.wrong("do_normalize is true, and the encoder takes pixels as they are")
    patch_size, merge = _sizes(files, given)
    num_tokens = int(given.get("max_soft_tokens") or 280)
    begin_id = int(config.get("boi_token_id") or 255_999)
    end_id = int(config.get("eoi_token_id") or 258_882)
    factor = _factor(given)
    return Family(
        token_id=files.token_id,
        patch_size=patch_size,
        frames=1,
        merge=merge,
        min_pixels=0,
        max_pixels=num_tokens * (merge * patch_size) ** 2,
        resample=int(given.get("resample") or 3),
        scale=(factor, factor, factor),
        shift=(-1.0, -1.0, -1.0),
        is_filled=True,
        written=Written(files.token_id, (begin_id, files.token_id, end_id)),
        video=_video(files, files.added_text(begin_id), files.added_text(end_id)),
    )


def _video(files: Files, begin: str | None, end: str | None) -> VideoFamily | None:
    """Return what is made of videos; None: no file says, or the vocabulary has not its tokens.

    Args:
        files: Of the model.
        begin: The mark before an image's tokens; None: there is none in the vocabulary.
        end: The mark behind them.

    Raises:
        CheckpointError: Frames have other patches than the encoder's, or are normalised.
    """
    given, token_id = files.video(), files.config.get("video_token_id")
    if given is None or begin is None or end is None or not isinstance(token_id, int):
        return None
    if files.added_text(token_id) is None:
        return None
    for name, usual in (("image_mean", 0), ("image_std", 1)):
        if any(value != usual for value in given.get(name) or ()):
            raise files.wrong(f"{name} of videos is {given[name]}; {usual} is computed")
    patch_size, merge = _sizes(files, given)
    num_tokens = int(given.get("max_soft_tokens") or FRAME_TOKENS)
    fps = float(given.get("fps") or 0)
    is_sampled = given.get("do_sample_frames") is not False
    factor = _factor(given)
    return VideoFamily(
        token_id=token_id,
        sampling=STEPPED,
        words={
            "begin": "",
            "lead": "{clock} " + begin,
            "trail": end,
            "between": " ",
            "end": "",
        },
        fps=fps if is_sampled else 0,
        max_frames=int(given.get("num_frames") or FRAMES) if is_sampled and not fps else 0,
        max_pixels=num_tokens * (merge * patch_size) ** 2,
        is_filled=True,
        scale=(factor, factor, factor),
        shift=(-1.0, -1.0, -1.0),
    )


def _sizes(files: Files, given: Settings) -> tuple[int, int]:
    """Return the pixels of a patch and the patches of a token, in height and width.

    Raises:
        CheckpointError: They are not the encoder's.
    """
    found: list[int] = []
    for key, usual in (("patch_size", 16), ("pooling_kernel_size", 3)):
        mine, its = (int(where.get(key) or usual) for where in (given, files.vision))
        if mine != its:
            raise files.wrong(f"{key} is {mine}; the encoder's is {its}")
        found.append(its)
    return found[0], found[1]


def _factor(given: Settings) -> float:
    """Return what pixels are multiplied by to go from 0 to 2."""
    return 2 * float(given.get("rescale_factor") or 1 / 255)
