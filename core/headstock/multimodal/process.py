"""The process that decodes images: a file may be made to fill all memory, or to break a decoder.

It reads frames from its standard input and answers each on its standard output: four bytes of
length, then JSON of a length given in four more bytes, then bytes. The first frame says what images
become and what decoding may take; each later one is a kind, ``image`` or ``video``, the number of
frames to look at where that is wished, and a file. Once it has met every format it can open nothing
any more, neither files nor connections.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import resource
import signal
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from headstock.multimodal import films, mosaic, tiles
from headstock.multimodal.patches import (
    MAX_ASPECT,
    bounded_size,
    cut,
    filling_size,
    fitting_size,
    fitting_video_size,
    padded_size,
    sample,
)

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
STILL_OF_MANY = "MPO"
"""Photographs with a second picture of the same scene; the first is the photograph."""
DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
ORIENTATION = 0x0112
DEFAULT_FPS = 24
"""Of videos that do not say how long their frames are shown."""
FRAMES_AT_ONCE = 8
"""Times the pixels of the largest image that all frames of a video may have together."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an image that the encoder takes by itself.

    Attributes:
        grid: Patches in time, height and width.
        patches: One after another. uint8. [N, P]
        view: As in :class:`headstock.wire.media.View`; None: its tokens are its patches.
        lead: Text before its tokens.
        trail: Text behind them.
    """

    grid: list[int]
    patches: np.ndarray
    view: list[int] | None = None
    lead: str = ""
    trail: str = ""


class RefusedError(Exception):
    """An image is not taken; ``kind`` says why, the other values what is allowed."""

    def __init__(self, kind: str, **values: Any) -> None:
        super().__init__(kind)
        self.answer = {"error": kind, **values}


def main() -> None:
    """Serve until standard input ends."""
    hello = read_frame(sys.stdin.buffer)
    if hello is None:
        return
    setup, _ = parted(hello)
    warm_up()
    confine(setup["memory_bytes"])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    write_frame(sys.stdout.buffer, {})
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, setup["cpu_s"])
        asked, data = parted(frame)
        answer, pixels = decode(asked["kind"], data, setup, asked["num_frames"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(sys.stdout.buffer, answer, pixels)


def decode(
    kind: str, data: bytes, setup: dict[str, Any], num_frames: int | None = None
) -> tuple[dict[str, Any], bytes]:
    """Return what is answered to a file: its pieces and their patches, or an ``error``.

    ``kind`` is ``image``, ``one of several`` images of a request, or ``video``. Of a video there
    is a piece and a time for each pair of frames.
    """
    family = setup["family"]
    try:
        if kind == "video":
            return decode_video(data, setup, num_frames)
        image = open_image(data, setup["max_pixels"])
        pieces = to_pieces(image, family, is_alone=kind == "image")
    except RefusedError as refusal:
        return refusal.answer, b""
    except (MemoryError, RecursionError, OverflowError):
        return {"error": "exhausted"}, b""
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, ArithmeticError):
        return {"error": "damaged"}, b""  # whatever a decoder says of it, is no business of others
    return answer_of(pieces, family)


def answer_of(pieces: list[Piece], family: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return what is answered to an image, and its pixels."""
    pixels = [piece.patches.tobytes() for piece in pieces]
    described = [
        {
            "grid": piece.grid,
            "view": piece.view,
            "lead": piece.lead,
            "trail": piece.trail,
            "size": len(data),
            "digest": digest_of(data, [piece.grid, piece.view], family),
        }
        for piece, data in zip(pieces, pixels, strict=True)
    ]
    return {"pieces": described, "times": []}, b"".join(pixels)


def decode_video(
    data: bytes, setup: dict[str, Any], num_frames: int | None
) -> tuple[dict[str, Any], bytes]:
    """Return what is answered to a file of several frames.

    Args:
        data: The file.
        setup: What images become and what decoding may take.
        num_frames: That are looked at, evenly spread; None: as the family's rule has it.

    Raises:
        RefusedError: It has one frame, or too many; or as for an image.
    """
    family, video = setup["family"], setup["family"]["video"]
    frames, seconds, total = chosen_of(data, setup, num_frames)
    shown = [frame for _, frame in frames]
    height, width = shown[0].shape[:2]
    size, patch_size = video["pooled"] or family["frames"], family["patch_size"]
    whole = [1, height // patch_size, width // patch_size]
    check_tokens(whole, family)
    unit = patch_size * family["merge"]
    times = [place * seconds / total for place, _ in frames]
    fps = len(shown) / seconds
    if not video["pooled"]:
        for padded in (shown, times):
            padded += [padded[-1]] * (-len(padded) % size)
    places = films.positions_of(-(-len(shown) // size), fps, family)
    if places[-1] >= len(places) * (height // unit) * (width // unit):
        raise RefusedError("slow", seconds=seconds, frames=len(frames))
    settings = {name: family[name] for name in ("patch_size", "merge", "frames")} | video
    words = films.words_of(times[::size], seconds, video)
    described: list[dict[str, Any]] = []
    pixels: list[bytes] = []
    for number, place in enumerate(places):
        moment = shown[number * size : (number + 1) * size]
        grid = [len(moment) if video["pooled"] else 1, *whole[1:]]
        pixels.append(_cut_moment(moment, family))
        view = films.view_of(number, len(places), grid, video)
        what = [grid, place, number > 0] if video["is_plain"] else [*grid, view]
        described.append(
            {
                "grid": grid,
                "view": view,
                "lead": words[number][0],
                "trail": words[number][1],
                "size": len(pixels[-1]),
                "digest": digest_of(pixels[-1], what, settings),
                "time": place,
            }
        )
    moments = [times[at : at + size] for at in range(0, len(times), size)]
    middles = [(moment[0] + moment[-1]) / 2 for moment in moments]
    return {"pieces": described, "times": middles}, b"".join(pixels)


def _cut_moment(frames: list[np.ndarray], family: dict[str, Any]) -> bytes:
    """Return the patches of a moment, each of all its frames, or frame by frame if pooled."""
    sizes = {name: family[name] for name in ("patch_size", "merge")}
    if not family["video"]["pooled"]:
        return cut(np.stack(frames), **sizes).tobytes()
    return b"".join(cut(frame[None], **sizes).tobytes() for frame in frames)


def chosen_of(
    data: bytes, setup: dict[str, Any], num_frames: int | None
) -> tuple[list[tuple[int, np.ndarray]], float, int]:
    """Return the frames that are looked at, how long all are shown, and how many there are.

    Raises:
        RefusedError: As :func:`decode_video`.
    """
    family, video = setup["family"], setup["family"]["video"]
    image = open_file(data, setup["max_pixels"])
    total = getattr(image, "n_frames", 1)
    if total < 2:
        raise RefusedError("still")
    per_frame = image.width * image.height
    if total * per_frame > FRAMES_AT_ONCE * setup["max_pixels"]:
        limit = FRAMES_AT_ONCE * setup["max_pixels"] // per_frame
        raise RefusedError("frames", frames=total, limit=limit)
    frames, seconds = read_frames(image, total)
    if num_frames is None:
        chosen = films.RULES[video["sampling"]](total, seconds, video, family["frames"])
    else:
        chosen = sample(total, seconds, fps=0, least=num_frames, most=num_frames)
    if len(chosen) > setup["max_frames"]:
        raise RefusedError("frames", frames=len(chosen), limit=setup["max_frames"])
    sizes = films.sizes_of(image.height, image.width, len(chosen), family)
    filter_ = Image.Resampling(family["resample"])
    made: dict[int, np.ndarray] = {}
    for place in dict.fromkeys(chosen):
        frame = frames[place]
        for size in sizes:
            frame = tiles.resized(frame, size, filter_)
        if video["padded"]:
            frame = made_up(frame, family | {"padded": video["padded"]}, filter_)
        made[place] = np.asarray(frame)
    return [(place, made[place]) for place in chosen], seconds, total


def read_frames(image: Image.Image, total: int) -> tuple[list[Image.Image], float]:
    """Return all frames, and how long they are shown together. Seconds."""
    frames: list[Image.Image] = []
    duration_ms = 0.0
    for place in range(total):
        image.seek(place)
        frames.append(image.convert("RGB"))
        duration_ms += float(image.info.get("duration") or 0)
    return frames, duration_ms / 1000 or total / DEFAULT_FPS


def open_file(data: bytes, max_pixels: int) -> Image.Image:
    """Return what is in ``data``, not decoded yet.

    Raises:
        RefusedError: It is of no format that is taken, or too large.
    """
    Image.MAX_IMAGE_PIXELS = None  # what is allowed is checked below, before anything is decoded
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise RefusedError("type") from None
    width, height = image.size
    if width * height > max_pixels:
        raise RefusedError("pixels", width=width, height=height, limit=max_pixels)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RefusedError("aspect", width=width, height=height, limit=MAX_ASPECT)
    return image


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Return the image in ``data``, upright, in 8 bits of red, green and blue.

    Raises:
        RefusedError: It is of no format that is taken, too large, or moves.
    """
    image = open_file(data, max_pixels)
    if image.format != STILL_OF_MANY and getattr(image, "is_animated", False):
        raise RefusedError("animated", frames=getattr(image, "n_frames", 2))
    image.load()
    if image.mode in DEEP_GREY:
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    return ImageOps.exif_transpose(image).convert("RGB")


def to_pieces(image: Image.Image, family: dict[str, Any], *, is_alone: bool) -> list[Piece]:
    """Return what the encoder takes of an image, alone in its request or not.

    Raises:
        RefusedError: It would have more tokens than the server takes.
    """
    if family["mosaic"]:
        return _mosaic_pieces(image, family, is_alone=is_alone)
    if family["tiles"]:
        return _tile_pieces(image, family)
    return [Piece(*to_patches(image, family))]


def _mosaic_pieces(image: Image.Image, family: dict[str, Any], *, is_alone: bool) -> list[Piece]:
    """Return a small picture and a mosaic; where several images are small ones, that alone."""
    settings, filter_ = family["mosaic"], Image.Resampling(family["resample"])
    pixels = family["size"][0]
    side = pixels // family["patch_size"]
    if settings["several"] is not None and not is_alone:
        limit_tokens(side**2 + 1, family)
        square = mosaic.padded_square(image, tuple(settings["several"]))
        small = square.resize((pixels, pixels), filter_)
        return [Piece([1, side, side], _cut(small, family), [side] * 4 + [1])]
    tall, wide = mosaic.best_size(image.height, image.width, settings["sizes"])
    grid = tall // family["patch_size"], wide // family["patch_size"]
    shown = mosaic.shown_of(image.height, image.width, grid, side, settings["max_tiles"])
    if min(shown.tall, shown.wide) < 1:
        raise RefusedError("thin", width=image.width, height=image.height)
    limit_tokens(side**2 + shown.count, family)
    tiles = mosaic.tiles_of(mosaic.mosaic_of(image, (tall, wide), filter_), pixels)
    patches = np.concatenate([_cut(tile, family) for tile in tiles])
    view = [shown.rows, shown.columns, shown.tall, shown.wide, shown.tall]
    small = image.resize((pixels, pixels), filter_)
    return [
        Piece([1, side, side], _cut(small, family)),
        Piece([1, *grid], patches, view),
    ]


def _tile_pieces(image: Image.Image, family: dict[str, Any]) -> list[Piece]:
    """Return the tiles of an image."""
    settings, side = family["tiles"], family["size"][0]
    make_plan, cut_up = tiles.LAYOUTS[settings["layout"]]
    plan = make_plan(image.height, image.width, side, settings)
    patches = side // family["patch_size"]
    limit_tokens(plan.count * patches**2 // family["merge"] ** 2, family)
    filter_ = Image.Resampling(family["resample"])
    return [
        Piece([1, patches, patches], _cut(tile.image, family), None, tile.lead, tile.trail)
        for tile in cut_up(image, plan, side, filter_, settings["words"])
    ]


def _cut(image: Image.Image, family: dict[str, Any]) -> np.ndarray:
    """Return the patches of an image that has its size already."""
    frames_FHWC = np.stack([np.asarray(image)] * family["frames"])
    return cut(frames_FHWC, patch_size=family["patch_size"], merge=family["merge"])


def to_patches(image: Image.Image, family: dict[str, Any]) -> tuple[list[int], np.ndarray]:
    """Return the grid of an image and its patches, resized as the family has it.

    Raises:
        RefusedError: It would have more tokens than the server takes.
    """
    height, width = target_size(image, family)
    grid = [1, height // family["patch_size"], width // family["patch_size"]]
    check_tokens(grid, family)
    filter_ = Image.Resampling(family["resample"])
    if family["is_cropped"]:
        image = cropped(image, height, width, filter_)
    elif family["padded"]:
        image = made_up(image, family, filter_)
    elif (image.width, image.height) != (width, height):
        image = image.resize((width, height), filter_)
    return grid, _cut(image, family)


def target_size(image: Image.Image, family: dict[str, Any]) -> tuple[int, int]:
    """Return the height and the width that an image is brought to."""
    unit = family["patch_size"] * family["merge"]
    if family["size"]:
        return family["size"]
    if family["longest"]:
        return bounded_size(image.height, image.width, unit=unit, longest=family["longest"])
    if family["padded"]:
        return _padded(image, family)[1]
    if family["is_filled"]:
        most = family["max_pixels"]
        return filling_size(image.height, image.width, unit=unit, max_pixels=most)
    if family["is_counted"]:
        return fitting_video_size(
            family["frames"],
            image.height,
            image.width,
            unit=unit,
            min_pixels=family["min_pixels"],
            max_pixels=family["max_pixels"],
        )
    return fitting_size(
        image.height,
        image.width,
        unit=unit,
        min_pixels=family["min_pixels"],
        max_pixels=family["max_pixels"],
    )


def _padded(image: Image.Image, family: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size that an image is shrunk to, and that of whole tokens around it."""
    sizes = {name: family[name] for name in ("patch_size", "merge")}
    return padded_size(image.height, image.width, **sizes, **family["padded"])


def made_up(image: Image.Image, family: dict[str, Any], filter_: Image.Resampling) -> Image.Image:
    """Return an image in the upper left corner of one of whole tokens."""
    (tall, wide), (height, width) = _padded(image, family)
    if image.size != (wide, tall):
        image = image.resize((wide, tall), filter_)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, (0, 0))
    return canvas


def cropped(image: Image.Image, height: int, width: int, filter_: Image.Resampling) -> Image.Image:
    """Return the middle of an image, resized so that its shorter side fits."""
    short, long = sorted(image.size)
    side = min(height, width)
    far = int(side * long / short)
    size = (side, far) if image.width <= image.height else (far, side)
    if image.size != size:
        image = image.resize(size, filter_)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def check_tokens(grid: list[int], family: dict[str, Any]) -> None:
    """Refuse what would have more tokens than the server takes.

    Raises:
        RefusedError: It would.
    """
    tokens = grid[1] * grid[2] // family["merge"] ** 2
    if family["row_marks"]:
        tokens += grid[1] // family["merge"]
    limit_tokens(tokens, family)


def limit_tokens(tokens: int, family: dict[str, Any]) -> None:
    """Refuse what has so many tokens, if the server takes fewer.

    Raises:
        RefusedError: It does.
    """
    if tokens > family["max_tokens"]:
        raise RefusedError("tokens", tokens=tokens, limit=family["max_tokens"])


def digest_of(pixels: bytes, grid: list[Any], family: dict[str, Any]) -> str:
    """Return 128 bits that are equal where the encoder would make the same of two images."""
    settings = json.dumps([grid, family], sort_keys=True).encode()
    found = hashlib.blake2b(digest_size=16, person=b"headstock-image")
    found.update(len(settings).to_bytes(8, "big") + settings)
    found.update(pixels)
    return found.hexdigest()


def warm_up() -> None:
    """Meet every format once, so that nothing is imported any more."""
    image = Image.new("RGB", (4, 4))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for name in ("PNG", "JPEG", "WEBP"):
        stream = io.BytesIO()
        image.save(stream, name, exif=exif)
        open_image(stream.getvalue(), 16)
    stream = io.BytesIO()
    image.convert("P").save(stream, "GIF")
    open_image(stream.getvalue(), 16).resize((2, 2), Image.Resampling.BICUBIC)
    for name in ("PNG", "WEBP", "GIF"):
        stream = io.BytesIO()
        image.save(stream, name, save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])
        read_frames(open_file(stream.getvalue(), 16), 2)
    stream = io.BytesIO()
    image.convert("CMYK").save(stream, "JPEG")
    open_image(stream.getvalue(), 16)
    with contextlib.suppress(RefusedError):
        open_image(b"no image", 16)


def confine(memory_bytes: int) -> None:
    """Take from this process what decoding does not need."""
    if not sys.platform.startswith("linux"):  # elsewhere memory counts that is only reserved
        return
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    most = taken + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # no file, no connection


def read_frame(stream: BinaryIO) -> bytes | None:
    """Return the next frame, or None at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "big")
    body = stream.read(size)
    return body if len(body) == size else None


def parted(frame: bytes) -> tuple[Any, bytes]:
    """Return the JSON that a frame begins with, and the bytes after it."""
    size = 4 + int.from_bytes(frame[:4], "big")
    return json.loads(frame[4:size]), frame[size:]


def write_frame(stream: BinaryIO, answer: dict[str, Any], data: bytes = b"") -> None:
    """Write an answer and the bytes that belong to it as one frame."""
    head = json.dumps(answer).encode()
    size = 4 + len(head) + len(data)
    stream.write(size.to_bytes(4, "big") + len(head).to_bytes(4, "big") + head)
    stream.write(data)
    stream.flush()


if __name__ == "__main__":
    main()
