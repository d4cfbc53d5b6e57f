"""Videos: which frames are looked at, in what size, and the words around them.

Runs in the decoding process, where a family is what JSON has of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from headstock.multimodal.layouts import stretched
from headstock.multimodal.patches import (
    filling_size,
    fitting_size,
    fitting_video_size,
    sample,
    sample_groups,
)

Video = Mapping[str, Any]
Rule = Callable[[int, float, Video, int], list[int]]
"""Takes the frames that there are, the seconds that they are shown, settings and the frames of a
moment; returns those that are looked at."""
MAX_DYNAMIC_FRAMES = 640
"""Frames of a video that GLM-4.6V looks at, at most."""
MAX_DYNAMIC_S = 2400
DYNAMIC_RATES = ((30, 3.0), (300, 1.0), (MAX_DYNAMIC_S, 0.5))
"""Seconds up to which a video is looked at so many times a second."""
FPS_DIGITS = 6
SKIPPED_S = 1
"""What SmolVLM leaves out at both ends of long videos. Seconds."""


def fps_of(total: int, seconds: float) -> float:
    """Return the frames a second that a file has; its last digits are noise."""
    return round(total / seconds, FPS_DIGITS)


def spread(total: int, seconds: float, video: Video, group: int) -> list[int]:
    """Return frames evenly spread, first and last among them: Qwen3-VL."""
    return sample(total, seconds, **_bounds(video))


def grouped(total: int, seconds: float, video: Video, group: int) -> list[int]:
    """Return whole groups of frames, evenly spread from the first: Qwen2-VL."""
    return sample_groups(total, seconds, group=group, **_bounds(video))


def _bounds(video: Video) -> dict[str, Any]:
    return {"fps": video["fps"], "least": video["min_frames"], "most": video["max_frames"]}


def by_seconds(total: int, seconds: float, video: Video, group: int) -> list[int]:
    """Return so many frames a second, fewer of long videos: GLM-4.1V and 4.5V.

    Source:
        ``sample_frames`` of GLM-4.1V's video processor in Hugging Face transformers.
    """
    fps, rate, longest = fps_of(total, seconds), video["fps"], video["max_seconds"]
    if seconds <= longest:
        count = max(math.floor(seconds * rate), 1)
        wanted = [math.ceil(number * fps / rate) for number in range(count)]
    elif int(longest * rate) >= total:
        wanted = list(range(total))
    else:
        moments = np.linspace(0, seconds, int(longest * rate))
        wanted = [math.ceil(moment * fps) for moment in moments]
    return _even(min(place, total - 1) for place in wanted)


def by_length(total: int, seconds: float, video: Video, group: int) -> list[int]:
    """Return frames, the fewer a second the longer a video is: GLM-4.6V and GLM-OCR.

    Source:
        ``sample_frames`` of GLM-4.6V's video processor in Hugging Face transformers.
    """
    bounded = min(seconds, MAX_DYNAMIC_S)
    rate = next(rate for longest, rate in DYNAMIC_RATES if bounded <= longest)
    count = min(int(bounded * rate * group), MAX_DYNAMIC_FRAMES)
    places: list[int] = []
    if total < count:
        places = _between(0, total - 1, count)
    else:
        frame_s, moment = 1 / fps_of(total, seconds), 0.0
        for place in range(total):
            if place * frame_s >= moment:
                moment += 1 / (group * rate)
                places.append(place)
                if moment >= int(seconds):
                    break
    if len(places) < count:
        places = _between(places[0], places[-1], count)
    elif len(places) > count:
        places = _between(0, total - 1, count)
    return _even(places)


def _between(first: int, last: int, count: int) -> list[int]:
    """Return so many frames from ``first`` to ``last``, evenly spread and cut to whole numbers."""
    return [int(place) for place in np.linspace(first, last, count, dtype=int)]


def _even(places: Iterable[int]) -> list[int]:
    """Return different frames, the last one twice where their number is odd."""
    found = list(dict.fromkeys(places))
    return found + found[-1:] * (len(found) % 2)


def centred(total: int, seconds: float, video: Video, group: int) -> list[int]:
    """Return the middles of equal parts of a video: InternVL.

    Source:
        ``sample_frames`` of InternVL's video processor in Hugging Face transformers.
    """
    step = total / _count(total, seconds, video)
    first = step / 2
    return [int(np.float32(first + n * step)) for n in range(math.ceil((total - first) / step))]


def stepped(total: int, seconds: float, video: Video, group: int) -> list[int]:
    """Return the beginnings of equal parts of a video: LLaVA-OneVision.

    Source:
        ``default_sample_indices_fn`` of Hugging Face transformers.
    """
    count = _count(total, seconds, video)
    return [number * total // count for number in range(count)]


def _count(total: int, seconds: float, video: Video) -> int:
    """Return how many frames are looked at: a number of them, or so many a second, or all."""
    if video["max_frames"]:
        return min(video["max_frames"], total)
    fps = fps_of(total, seconds)
    return min(max(int(total / fps * video["fps"]), 1), total) if video["fps"] else total


def inner(total: int, seconds: float, video: Video, group: int) -> list[int]:
    """Return frames evenly spread; long videos' first and last second are left out: SmolVLM.

    Source:
        ``sample_frames`` of SmolVLM's video processor in Hugging Face transformers.
    """
    fps, most, rate = fps_of(total, seconds), video["max_frames"], video["fps"]
    count = max(min(round(rate * seconds), most), 1)
    first, last = 0, total - 1
    if seconds - 2 * SKIPPED_S > most * rate:
        first, last = int(SKIPPED_S * fps), min(int(total - SKIPPED_S * fps), total - 1)
    if first >= last:
        first, last = 0, total - 1
    return list(dict.fromkeys(_between(first, last, count)))


SPREAD, GROUPED, BY_SECONDS, BY_LENGTH = "spread", "grouped", "by_seconds", "by_length"
CENTRED, STEPPED, INNER = "centred", "stepped", "inner"
RULES: Mapping[str, Rule] = {
    SPREAD: spread,
    GROUPED: grouped,
    BY_SECONDS: by_seconds,
    BY_LENGTH: by_length,
    CENTRED: centred,
    STEPPED: stepped,
    INNER: inner,
}
"""By the name of a rule."""


def sizes_of(height: int, width: int, count: int, family: Video) -> list[tuple[int, int]]:
    """Return the heights and widths that ``count`` frames are brought to, one after another.

    []: they are shrunk and made up to whole tokens instead.
    """
    video, unit = family["video"], family["patch_size"] * family["merge"]
    if video["padded"]:
        return []
    if video["size"]:
        first = [stretched(height, width, video["longest"])] if video["longest"] else []
        return [*first, video["size"]]
    least, most = video["min_pixels"], video["max_pixels"]
    if video["is_filled"]:
        return [filling_size(height, width, unit=unit, max_pixels=most)]
    if video["is_plain"]:
        return [fitting_size(height, width, unit=unit, min_pixels=least, max_pixels=most)]
    if video["frame_tokens"] is not None:
        share = min(video["frame_tokens"] * unit**2, most // count)
        most = max(share, int(least * 1.05)) * count
    bounds = {"min_pixels": least, "max_pixels": most}
    return [fitting_video_size(count, height, width, unit=unit, **bounds)]


def positions_of(count: int, fps: float, family: Video) -> list[int]:
    """Return the positions of moments in time, of which ``fps`` frames a second were chosen.

    Models that are given times have none.
    """
    video = family["video"]
    if not video["is_plain"]:
        return [0] * count
    step = video["per_second"] * family["frames"] / fps if video["per_second"] else 1
    return [int(np.float32(number) * np.float32(step)) for number in range(count)]


def view_of(number: int, count: int, grid: Sequence[int], video: Video) -> list[int] | None:
    """Return what the tokens of a moment show, as :class:`headstock.wire.media.View`.

    None: all of it. Otherwise half as many in height and width, and a mark after the last moment.
    """
    if not video["is_halved"]:
        return None
    _, rows, columns = grid
    return [rows, columns, -(-rows // 2), -(-columns // 2), int(number == count - 1)]


def words_of(times: Sequence[float], seconds: float, video: Video) -> list[tuple[str, str]]:
    """Return the text before and behind the tokens of each moment.

    Args:
        times: When the first frame of each moment is. Seconds.
        seconds: How long the video is.
        video: Has ``words``: ``lead`` and ``trail`` of each moment, ``between`` two of them, and
            what comes before the first and behind the last: ``begin`` and ``end``.
    """
    words, last = video["words"], len(times) - 1
    if not words:
        return [("", "")] * len(times)
    length = str(timedelta(seconds=int(seconds)))
    begin = words["begin"].format(count=spelled(len(times)), length=length)
    found: list[tuple[str, str]] = []
    for number, time in enumerate(times):
        clock = f"{int(time // 60):02d}:{int(time % 60):02d}"
        stamp = f"{int(time // 3600):02d}:{int(time // 60 % 60):02d}:{int(time % 60):02d}"
        stamp += f".{int(time % 1 * 1000):03d}"
        fields = {"number": number + 1, "time": time, "second": int(time), "clock": clock}
        fields["stamp"] = stamp
        lead = words["lead"].format(**fields)
        trail = words["trail"].format(**fields)
        before = words["between"] if number else begin
        found.append((before + lead, trail + (words["end"] if number == last else "")))
    return found


ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def spelled(number: int) -> str:
    """Return a number below a million in English words, as SmolVLM was trained to read it."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f"-{ONES[ones]}" if ones else "")
    unit, name, joint = (100, "hundred", " and ") if number < 1000 else (1000, "thousand", ", ")
    many, rest = divmod(number, unit)
    if name == "thousand" and rest < 100:
        joint = " and "
    return f"{spelled(many)} {name}" + (f"{joint}{spelled(rest)}" if rest else "")
