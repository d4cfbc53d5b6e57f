"""Pixels to patches, in the sizes and the order that encoders take. Runs in the decoding process.

Shapes: F frames, H height and W width in pixels, C channels, N patches, P values of a patch.
"""

from __future__ import annotations

import math

import numpy as np

MAX_ASPECT = 200
"""Times that an image may be longer than wide, or wider than long."""


def fitting_size(
    height: int, width: int, *, unit: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return the size to bring an image to: whole units, few enough pixels, nearly its aspect.

    Source:
        ``smart_resize`` of Hugging Face transformers, whose results these are.
    """
    tall, wide = round(height / unit) * unit, round(width / unit) * unit
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall = max(unit, math.floor(height / shrink / unit) * unit)
        wide = max(unit, math.floor(width / shrink / unit) * unit)
    elif tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        tall = math.ceil(height * grow / unit) * unit
        wide = math.ceil(width * grow / unit) * unit
    return tall, wide


def filling_size(height: int, width: int, *, unit: int, max_pixels: int) -> tuple[int, int]:
    """Return the size of an image made as large as it may be: whole units, nearly its aspect.

    Source:
        ``get_aspect_ratio_preserving_size`` of Gemma 4 in Hugging Face transformers.
    """
    factor = math.sqrt(max_pixels / (height * width))
    tall, wide = (math.floor(factor * side / unit) * unit for side in (height, width))
    longest = max_pixels // unit**2 * unit
    if not tall:
        return unit, max(unit, min(width // height * unit, longest))
    if not wide:
        return max(unit, min(height // width * unit, longest)), unit
    return tall, wide


def bounded_size(height: int, width: int, *, unit: int, longest: int) -> tuple[int, int]:
    """Return the size of an image whose longer side is bounded: units that hold all of it.

    Source:
        ``get_resize_output_image_size`` of Pixtral in Hugging Face transformers.
    """
    ratio = max(height / longest, width / longest)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return (max(height - 1, 0) // unit + 1) * unit, (max(width - 1, 0) // unit + 1) * unit


def padded_size(
    height: int, width: int, *, patch_size: int, merge: int, max_patches: int, max_side: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size to shrink an image to, and that of whole tokens which hold it.

    An image is never enlarged, and nearly keeps its aspect.

    Source:
        ``navit_resize`` of Kimi K2.5 in Hugging Face transformers.
    """
    patches = max(1, height // patch_size) * max(1, width // patch_size)
    longest = max_side * patch_size
    scale = min(1.0, math.sqrt(max_patches / patches), longest / height, longest / width)
    tall, wide = (min(max(1, int(side * scale)), longest) for side in (height, width))
    unit = patch_size * merge
    return (tall, wide), (-(-tall // unit) * unit, -(-wide // unit) * unit)


def fitting_video_size(
    num_frames: int, height: int, width: int, *, unit: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return the size to bring a video's frames to; the bounds are of all of them together.

    Source:
        ``smart_resize`` of Qwen3-VL's video processor in Hugging Face transformers.
    """
    if height < unit or width < unit:
        grow = max(unit / height, unit / width)
        height, width = int(height * grow), int(width * grow)
    tall, wide = round(height / unit) * unit, round(width / unit) * unit
    frames = round(num_frames / 2) * 2
    if frames * tall * wide > max_pixels:
        shrink = math.sqrt(num_frames * height * width / max_pixels)
        tall = max(unit, math.floor(height / shrink / unit) * unit)
        wide = max(unit, math.floor(width / shrink / unit) * unit)
    elif frames * tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (num_frames * height * width))
        tall = math.ceil(height * grow / unit) * unit
        wide = math.ceil(width * grow / unit) * unit
    return tall, wide


def sample(total: int, seconds: float, *, fps: float, least: int, most: int) -> list[int]:
    """Return which of a video's frames to look at: evenly spread, first and last among them.

    Source:
        ``sample_frames`` of Qwen3-VL's video processor in Hugging Face transformers.
    """
    wanted = min(max(int(seconds * fps), least), most, total)
    return np.linspace(0, total - 1, wanted).round().astype(int).tolist()


def sample_groups(
    total: int, seconds: float, *, fps: float, least: int, most: int, group: int
) -> list[int]:
    """Return which of a video's frames to look at: evenly spread from the first, whole groups.

    Source:
        ``sample_frames`` of Qwen2-VL's video processor in Hugging Face transformers.
    """
    most = min(most, total) // group * group
    wanted = math.floor(min(max(seconds * fps, least), most, total) / group) * group
    step = total / wanted
    return [int(np.float32(place * step)) for place in range(math.ceil(total / step))]


def cut(frames_FHWC: np.ndarray, *, patch_size: int, merge: int) -> np.ndarray:
    """Return the patches of an image, those that become one token together. uint8. [N, P]

    Args:
        frames_FHWC: uint8; the frames that a patch holds, equal ones of an image. Both sides are
            multiples of ``patch_size`` times ``merge``.
        patch_size: Pixels in height and width.
        merge: Patches in height and width that become one token.
    """
    frames, height, width, channels = frames_FHWC.shape
    rows, columns = height // patch_size // merge, width // patch_size // merge
    shape = (frames, rows, merge, patch_size, columns, merge, patch_size, channels)
    patches = frames_FHWC.reshape(shape).transpose(1, 4, 2, 5, 7, 0, 3, 6)
    return np.ascontiguousarray(patches).reshape(rows * columns * merge**2, -1)
