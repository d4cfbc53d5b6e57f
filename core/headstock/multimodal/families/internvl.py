"""InternVL 3 and 3.5: tiles in the shape that comes nearest the image's, then all of it.

A video is a row of frames, one tile each, with their numbers.
"""

from __future__ import annotations

from headstock.multimodal.families.files import Files, Settings, first_of
from headstock.multimodal.family import Family, Tiles, VideoFamily
from headstock.multimodal.films import CENTRED
from headstock.multimodal.layouts import CANVAS


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
        video=_video(files, side),
    )


def _video(files: Files, side: int) -> VideoFamily | None:
    """Return what is made of videos; None: no file says.

    Raises:
        CheckpointError: Frames have another size than the encoder's.
    """
    token, given = files.other("tokenizer_config.json").get("video_token"), files.video()
    if given is None:
        return None
    size: Settings = given.get("size") or {}
    if (size.get("height"), size.get("width")) != (side, side):
        raise files.wrong(f"frames are resized to {size}; the encoder takes {side} x {side}")
    token_id = files.added_id(str(token or "<video>"))
    if token_id is None:
        return None
    scale, shift = files.scales(given)
    marks = _marks(files)
    return VideoFamily(
        token_id=token_id,
        feature_id=files.token_id,
        sampling=CENTRED,
        words={
            "begin": "",
            "lead": "Frame{number}: " + marks["begin"],
            "trail": marks["end"],
            "between": "\n",
            "end": "",
        },
        fps=float(given.get("fps") or 0),
        max_frames=int(given.get("num_frames") or 0),
        size=(side, side),
        scale=scale,
        shift=shift,
    )


def _marks(files: Files) -> dict[str, str]:
    """Return what stands before and behind an image's tokens."""
    named = files.other("tokenizer_config.json")
    return {
        "begin": str(named.get("start_image_token") or "<img>"),
        "end": str(named.get("end_image_token") or "</img>"),
    }
