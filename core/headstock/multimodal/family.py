"""What a family of models makes of an image, read off the files beside its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from headstock.errors import CheckpointError
from headstock.multimodal.tiles import CANVAS, FIT, SPLITS

MERGED_PATCHES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe")
"""Model types that cut an image into patches, and make one token of a square of them."""
STILL = ("qwen2_vl", "qwen2_5_vl")
"""Those whose videos have neither marks nor times, but positions in time."""
COUNTED = ("glm4v", "glm4v_moe", "glm46v")
"""Of these, those whose bounds are of all pixels that patches have, an image's twice."""
SQUARES = ("gemma3",)
"""Model types that resize every image to one square."""
FILLED = ("gemma4",)
"""Model types that make an image as large as there may be tokens of it."""
ROWS = ("mistral3",)
"""Model types that keep an image's size where they can, with a mark after each row of tokens."""
CROPPED = ("llava",)
"""Model types that see the square in the middle of an image."""
MOSAICS = ("llava_next", "llava_onevision")
"""Model types that see all of an image small, and a mosaic of its parts."""
SPLIT = ("idefics3", "smolvlm")
"""Model types that see tiles between words that say where they are, and then all of an image."""
SPLIT_WORDS = {
    "around": "<fake_token_around_image>",
    "whole": "<global-img>",
    "place": "<row_{row}_col_{column}>",
    "row_end": "\n",
    "before_whole": "\n",
}
CANVASES = ("internvl",)
"""Model types that see tiles in the shape that comes nearest the image's, then all of it."""
FITS = ("llama4",)
"""Model types that see tiles of the canvas that an image fits best, then all of it."""
FIT_WORDS = {
    "begin": "<|image_start|>",
    "beside": "<|tile_x_separator|>",
    "below": "<|tile_y_separator|>",
    "whole": "<|image|>",
    "end": "<|image_end|>",
}
NEXT_SIZES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Sizes of LLaVA-Next's mosaics where no file says."""
ANY_RESOLUTION = "anyres_max_"
"""Before the most tiles of a mosaic, in ``vision_aspect_ratio``."""
FILES = ("preprocessor_config.json", "processor_config.json")
VIDEO_FILES = ("video_preprocessor_config.json", "processor_config.json")
Channels = tuple[float, float, float]
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VideoFamily:
    """How videos are sampled and cut: as images are, but for this.

    Attributes:
        token_id: Id that stands for a video in a tokenised prompt, once before it is expanded.
        begin_id: Id before the tokens of each frame.
        end_id: Id after them.
        fps: Frames to look at a second.
        min_frames: Fewest frames to look at.
        max_frames: Most.
        min_pixels: Fewest pixels of all frames together.
        max_pixels: Most.
        frame_tokens: Most tokens of a frame; None: as many as the pixels allow.
        scale: Multiplies the pixels of each channel.
        shift: Added to them then.
        is_plain: Whether moments stand one after another, without marks and times, and have
            positions on an axis of time; then the bounds of pixels are of each frame.
        per_second: Positions that a second takes; 0: each moment takes one.
    """

    token_id: int
    begin_id: int
    end_id: int
    fps: float
    min_frames: int
    max_frames: int
    min_pixels: int
    max_pixels: int
    frame_tokens: int | None
    scale: tuple[float, float, float]
    shift: tuple[float, float, float]
    is_plain: bool = False
    per_second: float = 0


@dataclass(frozen=True, slots=True)
class Written:
    """How an image is written in text, where that is more than its placeholder.

    Attributes:
        mark_id: Id of the token that chat templates write for an image.
        ids: Ids of the tokens that stand in its place, the placeholder among them.
        around: Text before these and behind them.
    """

    mark_id: int
    ids: tuple[int, ...]
    around: str = ""


@dataclass(frozen=True, slots=True)
class Mosaic:
    """How an image becomes a small picture of all of it, and a mosaic of tiles.

    Attributes:
        sizes: Heights and widths in pixels that a mosaic may have.
        max_tiles: As in :func:`headstock.multimodal.mosaic.shown_of`.
        several: Where a request has several images, they have no mosaics, and this colour around
            them makes them squares; None: each has a mosaic.
    """

    sizes: list[tuple[int, int]]
    max_tiles: int | None
    several: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Tiles:
    """How an image becomes tiles that stand in the prompt one after another.

    Attributes:
        layout: Which of :data:`headstock.multimodal.tiles.LAYOUTS`.
        words: Text around them, by the names that the layout has for it.
        is_cut: Whether an image is cut at all; otherwise it is one tile.
        longest: Pixels that the longer side is brought to before the image is cut, if the layout
            does so.
        min_tiles: Fewest that an image is cut into, without the one of all of it.
        max_tiles: Most.
    """

    layout: str
    words: Mapping[str, str]
    is_cut: bool = True
    longest: int = 0
    min_tiles: int = 1
    max_tiles: int = 1


@dataclass(frozen=True, slots=True)
class Family:
    """How images are cut, and which id stands for them.

    Attributes:
        token_id: Id that stands for an image in a tokenised prompt, once before it is expanded.
        patch_size: Pixels of a patch in height and width.
        frames: Times that an image is repeated in a patch, as if it were a video.
        merge: Patches in height and width that become one token.
        min_pixels: Fewest pixels that an image is resized to.
        max_pixels: Most.
        resample: Number of the filter that resizes: 3 is bicubic, 2 bilinear, 1 Lanczos.
        scale: Multiplies the pixels of each channel.
        shift: Added to them then.
        video: What it makes of videos; None: it takes none.
        size: Height and width in pixels that each image is resized to, whatever its aspect; None:
            as ``min_pixels`` and ``max_pixels`` allow.
        written: How text has images; None: the placeholder stands there.
        is_cropped: Whether an image keeps its aspect and covers ``size``, which is then cut out of
            its middle.
        longest: Pixels of the longer side at most, where images are never made larger; None: as
            the other fields say.
        row_marks: Tokens after each row of an image's, and after the last one instead; None: there
            are none.
        mosaic: How it is cut into tiles of ``size`` whose rows join; None: it is not.
        tiles: How it is cut into tiles of ``size`` one after another; None: it is not.
        is_counted: Whether each of an image's ``frames`` counts against the bounds of pixels.
        feature_id: Id of the tokens that have its features; None: ``token_id``.
        is_filled: Whether an image is made as large as ``max_pixels`` allow, in its aspect.
    """

    token_id: int
    patch_size: int
    frames: int
    merge: int
    min_pixels: int
    max_pixels: int
    resample: int
    scale: tuple[float, float, float]
    shift: tuple[float, float, float]
    video: VideoFamily | None = None
    size: tuple[int, int] | None = None
    written: Written | None = None
    is_cropped: bool = False
    longest: int | None = None
    row_marks: tuple[str, str] | None = None
    mosaic: Mosaic | None = None
    tiles: Tiles | None = None
    feature_id: int | None = None
    is_counted: bool = False
    is_filled: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def find_family(config: Settings, folder: Path) -> Family | None:
    """Return what the model in ``folder`` makes of images; None: it takes none that we know.

    Raises:
        CheckpointError: The settings of its image processor are missing, or ask for what we do not
            compute.
    """
    kind = str(config.get("model_type"))
    if kind not in _MAKERS:
        return None
    token_id = config.get("image_token_id", config.get("image_token_index"))
    if not isinstance(token_id, int):
        raise _wrong(folder, "config.json has no image_token_id")
    given = _read(folder, FILES, "image_processor")
    if given is None:
        raise _wrong(folder, f"there is neither {FILES[0]} nor {FILES[1]} of an image processor")
    for switch in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        is_needed = switch != "do_normalize" or kind not in FILLED
        if is_needed and given.get(switch) is False:
            raise _wrong(folder, f"{switch} is false")
    return _MAKERS[kind](folder, config, given, token_id)


def _merged_patches(folder: Path, config: Settings, given: Settings, token_id: int) -> Family:
    """Return what is made of images by models that keep their aspect."""
    size, kind = given.get("size") or {}, config.get("model_type")
    vision = config.get("vision_config") or {}
    scale, shift = _scales(folder, given)
    return Family(
        token_id=token_id,
        patch_size=int(given.get("patch_size") or vision.get("patch_size") or _patch_size(config)),
        frames=int(given.get("temporal_patch_size") or vision.get("temporal_patch_size") or 2),
        merge=int(given.get("merge_size") or vision.get("spatial_merge_size") or 2),
        min_pixels=int(given.get("min_pixels") or size.get("shortest_edge") or 56 * 56),
        max_pixels=int(given.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280),
        resample=int(given.get("resample") or 3),
        scale=scale,
        shift=shift,
        video=_video(config, folder, given) if kind not in COUNTED else None,
        is_counted=kind in COUNTED,
    )


def _patch_size(config: Settings) -> int:
    """Return the pixels of a patch where no file says."""
    return 14 if config.get("model_type") in (*STILL, *COUNTED) else 16


def _square(folder: Path, config: Settings, given: Settings, token_id: int) -> Family:
    """Return what is made of images by Gemma 3: as many tokens of each, between two marks.

    Raises:
        CheckpointError: The processor's size is not the encoder's, or images are to be cut up.
    """
    if given.get("do_pan_and_scan"):
        raise _wrong(folder, "do_pan_and_scan is true, and images are not cut into crops here")
    vision = config.get("vision_config") or {}
    side, patch_size = int(vision.get("image_size") or 224), int(vision.get("patch_size") or 16)
    size = given.get("size") or {}
    if (size.get("height"), size.get("width")) != (side, side):
        raise _wrong(folder, f"images are resized to {size}; the encoder takes {side} x {side}")
    per_side = round(int(config.get("mm_tokens_per_image") or 256) ** 0.5)
    begin_id = int(config.get("boi_token_index") or 255_999)
    end_id = int(config.get("eoi_token_index") or 256_000)
    scale, shift = _scales(folder, given)
    return Family(
        token_id=token_id,
        patch_size=patch_size,
        frames=1,
        merge=side // patch_size // per_side,
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 2),
        scale=scale,
        shift=shift,
        size=(side, side),
        written=Written(begin_id, (begin_id, token_id, end_id), around="\n\n"),
    )


def _filled(folder: Path, config: Settings, given: Settings, token_id: int) -> Family:
    """Return what is made of images by Gemma 4: as many tokens as there may be, in their aspect.

    Pixels go from -1 to 1, as the encoder itself brings them.

    Raises:
        CheckpointError: The processor's patches are not the encoder's, or it normalises pixels.
    """
    if given.get("do_normalize"):
        raise _wrong(folder, "do_normalize is true, and the encoder takes pixels as they are")
    vision = config.get("vision_config") or {}
    sizes = {"patch_size": 16, "pooling_kernel_size": 3}
    for key, usual in sizes.items():
        mine, its = (int(where.get(key) or usual) for where in (given, vision))
        if mine != its:
            raise _wrong(folder, f"{key} is {mine}; the encoder's is {its}")
        sizes[key] = its
    patch_size, merge = sizes["patch_size"], sizes["pooling_kernel_size"]
    num_tokens = int(given.get("max_soft_tokens") or 280)
    factor = 2 * float(given.get("rescale_factor") or 1 / 255)
    begin_id = int(config.get("boi_token_id") or 255_999)
    end_id = int(config.get("eoi_token_id") or 258_882)
    return Family(
        token_id=token_id,
        patch_size=patch_size,
        frames=1,
        merge=merge,
        min_pixels=0,
        max_pixels=num_tokens * (merge * patch_size) ** 2,
        resample=int(given.get("resample") or 3),
        scale=(factor, factor, factor),
        shift=(-1.0, -1.0, -1.0),
        is_filled=True,
        written=Written(token_id, (begin_id, token_id, end_id)),
    )


def _cropped(folder: Path, config: Settings, given: Settings, token_id: int) -> Family:
    """Return what is made of images by LLaVA: the square in the middle, a token a patch.

    With Pixtral's encoder all of an image, in rows.

    Raises:
        CheckpointError: The processor's size is not the encoder's.
    """
    vision = config.get("vision_config") or {}
    if vision.get("model_type") == "pixtral":
        return _rows(folder, {"spatial_merge_size": 1, **config}, given, token_id)
    side, patch_size = int(vision.get("image_size") or 336), int(vision.get("patch_size") or 14)
    size, crop = given.get("size") or {}, given.get("crop_size") or {}
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    cut = (crop.get("height"), crop.get("width")) if isinstance(crop, dict) else (crop, crop)
    if shortest != side or cut != (side, side) or given.get("do_center_crop") is False:
        raise _wrong(
            folder,
            f"images are resized to {size} and cut to {crop}; the encoder takes {side} x {side}",
        )
    scale, shift = _scales(folder, given)
    return Family(
        token_id=token_id,
        patch_size=patch_size,
        frames=1,
        merge=1,
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 3),
        scale=scale,
        shift=shift,
        size=(side, side),
        is_cropped=True,
    )


def _mosaic(folder: Path, config: Settings, given: Settings, token_id: int) -> Family:
    """Return what is made of images by LLaVA-Next and LLaVA-OneVision: a picture and a mosaic.

    Raises:
        CheckpointError: The processor's sizes are not the encoder's.
    """
    vision = config.get("vision_config") or {}
    is_next = config.get("model_type") == "llava_next"
    side = int(vision.get("image_size") or (336 if is_next else 384))
    size, crop = given.get("size") or {}, given.get("crop_size") or {}
    edges = {size.get(edge) for edge in ("height", "width", "shortest_edge")} - {None}
    if given.get("do_center_crop"):
        edges |= {crop.get("height"), crop.get("width")}
    if edges != {side}:
        raise _wrong(folder, f"tiles are resized to {size}; the encoder takes {side} x {side}")
    sizes = given.get("image_grid_pinpoints") or (NEXT_SIZES if is_next else _all_sizes(side))
    if sizes != (config.get("image_grid_pinpoints") or sizes):
        raise _wrong(folder, "config.json has other image_grid_pinpoints than the processor")
    if any(len(each) != 2 or min(each) < side or max(each) % side for each in sizes):
        raise _wrong(folder, f"image_grid_pinpoints are no multiples of {side}")
    scale, shift = _scales(folder, given)
    mean = _channels(folder, given, "image_mean")
    return Family(
        token_id=token_id,
        patch_size=int(vision.get("patch_size") or 14),
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
            max_tiles=None if is_next else _max_tiles(folder, config),
            several=None if is_next else cast("Any", tuple(int(m * 255) for m in mean)),
        ),
    )


def _split(folder: Path, config: Settings, given: Settings, token_id: int) -> Family:
    """Return what is made of images by Idefics3 and SmolVLM: tiles, and all of an image.

    Raises:
        CheckpointError: The processor's size is not the encoder's.
    """
    vision = config.get("vision_config") or {}
    side = int(vision.get("image_size") or 224)
    tile = given.get("max_image_size") or {"longest_edge": 364}
    if tile.get("longest_edge") != side:
        raise _wrong(folder, f"tiles have {tile}; the encoder takes {side} x {side}")
    longest = (given.get("size") or {"longest_edge": 4 * 364}).get("longest_edge")
    if not isinstance(longest, int):
        raise _wrong(folder, f"images are resized to {given.get('size')}, not to a longest_edge")
    scale, shift = _scales(folder, given)
    return Family(
        token_id=token_id,
        patch_size=int(vision.get("patch_size") or 32),
        frames=1,
        merge=int(config.get("scale_factor") or 2),
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 1),
        scale=scale,
        shift=shift,
        size=(side, side),
        tiles=Tiles(
            layout=SPLITS,
            words=SPLIT_WORDS,
            is_cut=given.get("do_image_splitting") is not False,
            longest=longest,
        ),
    )


def _canvas(folder: Path, config: Settings, given: Settings, token_id: int) -> Family:
    """Return what is made of images by InternVL: tiles, and all of an image, between two marks.

    Its processor cuts images whatever the settings of the image processor say.

    Raises:
        CheckpointError: The processor's size is not the encoder's.
    """
    vision = config.get("vision_config") or {}
    side = _first(vision.get("image_size")) or 448
    size = given.get("size") or {}
    if (size.get("height"), size.get("width")) != (side, side):
        raise _wrong(folder, f"tiles are resized to {size}; the encoder takes {side} x {side}")
    named = _read_whole(folder, "tokenizer_config.json")
    words = {
        "begin": str(named.get("start_image_token") or "<img>"),
        "end": str(named.get("end_image_token") or "</img>"),
    }
    most = int(given.get("max_patches") or 12)
    scale, shift = _scales(folder, given)
    return Family(
        token_id=token_id,
        patch_size=_first(vision.get("patch_size")) or 14,
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
            words=words,
            is_cut=most > 1,
            min_tiles=int(given.get("min_patches") or 1),
            max_tiles=most,
        ),
    )


def _fit(folder: Path, config: Settings, given: Settings, token_id: int) -> Family:
    """Return what is made of images by Llama 4: tiles, and all of an image, with marks between.

    In text stands another token for an image than those that have its features.

    Raises:
        CheckpointError: The processor's size is not the encoder's, or it enlarges images.
    """
    vision = config.get("vision_config") or {}
    side = int(vision.get("image_size") or 448)
    size = given.get("size") or {}
    if (size.get("height"), size.get("width")) != (side, side):
        raise _wrong(folder, f"tiles are resized to {size}; the encoder takes {side} x {side}")
    if given.get("resize_to_max_canvas"):
        raise _wrong(folder, "resize_to_max_canvas is true, and images are not enlarged here")
    scale, shift = _scales(folder, given)
    return Family(
        token_id=_id_of(folder, FIT_WORDS["whole"]),
        feature_id=token_id,
        patch_size=int(vision.get("patch_size") or 14),
        frames=1,
        merge=2,
        min_pixels=side * side,
        max_pixels=side * side,
        resample=int(given.get("resample") or 2),
        scale=scale,
        shift=shift,
        size=(side, side),
        tiles=Tiles(layout=FIT, words=FIT_WORDS, max_tiles=int(given.get("max_patches") or 16)),
    )


def _id_of(folder: Path, text: str) -> int:
    """Return the id of a token that was added to the vocabulary.

    Raises:
        CheckpointError: There is none.
    """
    for token in _read_whole(folder, "tokenizer.json").get("added_tokens") or ():
        if token.get("content") == text:
            return int(token["id"])
    raise _wrong(folder, f"tokenizer.json has no added token {text!r}, which stands for an image")


def _first(given: Any) -> int:
    """Return a side of a square that is given by one side, or both; 0: it is not given."""
    return int(given[0] if isinstance(given, list) else given or 0)


def _all_sizes(side: int) -> list[list[int]]:
    """Return the sizes of LLaVA-OneVision's mosaics where no file says: up to six tiles a side."""
    return [[side * tall, side * wide] for tall in range(1, 7) for wide in range(1, 7)]


def _max_tiles(folder: Path, config: Settings) -> int:
    """Return the tiles that a mosaic's tokens are resampled to.

    Raises:
        CheckpointError: The configuration does otherwise.
    """
    given = str(config.get("vision_aspect_ratio") or "anyres_max_9")
    count = given.removeprefix(ANY_RESOLUTION)
    if not given.startswith(ANY_RESOLUTION) or not count.isdecimal() or int(count) < 1:
        raise _wrong(folder, f"vision_aspect_ratio is {given!r}, not {ANY_RESOLUTION} and a number")
    return int(count)


def _rows(folder: Path, config: Settings, given: Settings, token_id: int) -> Family:
    """Return what is made of images by Mistral 3: as large as they are, in rows with marks."""
    vision = config.get("vision_config") or {}
    size = given.get("size") or {}
    patch_size = int(vision.get("patch_size") or 16)
    named = _read_whole(folder, "processor_config.json")
    marks = [str(named.get(f"image_{n}_token") or f"[IMG_{n.upper()}]") for n in ("break", "end")]
    scale, shift = _scales(folder, given)
    return Family(
        token_id=token_id,
        patch_size=patch_size,
        frames=1,
        merge=int(config.get("spatial_merge_size") or 2),
        min_pixels=0,
        max_pixels=0,
        resample=int(given.get("resample") or 3),
        scale=scale,
        shift=shift,
        longest=int(size.get("longest_edge") or vision.get("image_size") or 1024),
        row_marks=(marks[0], marks[1]),
    )


_MAKERS: Mapping[str, Callable[[Path, Settings, Settings, int], Family]] = {
    **dict.fromkeys((*MERGED_PATCHES, *COUNTED), _merged_patches),
    **dict.fromkeys(SQUARES, _square),
    **dict.fromkeys(FILLED, _filled),
    **dict.fromkeys(CROPPED, _cropped),
    **dict.fromkeys(MOSAICS, _mosaic),
    **dict.fromkeys(SPLIT, _split),
    **dict.fromkeys(CANVASES, _canvas),
    **dict.fromkeys(FITS, _fit),
    **dict.fromkeys(ROWS, _rows),
}
"""What makes a family of the files beside a model, by its type."""


def _video(config: Settings, folder: Path, image: Settings) -> VideoFamily | None:
    """Return what the model makes of videos; None: its files do not say.

    Older files have the settings of videos and ``image``, those of images, in one.
    """
    given = _read(folder, VIDEO_FILES, "video_processor")
    if config.get("model_type") in STILL:
        return _plain_video(config, folder, given or image)
    ids = [config.get(f"{name}_token_id") for name in ("video", "vision_start", "vision_end")]
    if given is None or not all(isinstance(i, int) for i in ids):
        return None
    size = given.get("size") or {}
    scale, shift = _scales(folder, given)
    is_capped = bool(given.get("cap_pixels_per_frame"))
    return VideoFamily(
        *cast("list[int]", ids),
        fps=float(given.get("fps") or 2),
        min_frames=int(given.get("min_frames") or 4),
        max_frames=int(given.get("max_frames") or 768),
        min_pixels=int(size.get("shortest_edge") or 128 * 32 * 32),
        max_pixels=int(size.get("longest_edge") or 32 * 32 * 768),
        frame_tokens=int(given.get("max_video_tokens") or 768) if is_capped else None,
        scale=scale,
        shift=shift,
    )


def _plain_video(config: Settings, folder: Path, given: Settings) -> VideoFamily | None:
    """Return what Qwen2-VL and Qwen2.5-VL make of videos; None: they have no token for one."""
    token_id, vision = config.get("video_token_id"), config.get("vision_config") or {}
    if not isinstance(token_id, int):
        return None
    size = given.get("size") or {}
    scale, shift = _scales(folder, given)
    is_later = config.get("model_type") == "qwen2_5_vl"
    return VideoFamily(
        token_id=token_id,
        begin_id=0,
        end_id=0,
        fps=float(given.get("fps") or 2),
        min_frames=int(given.get("min_frames") or 4),
        max_frames=int(given.get("max_frames") or 768),
        min_pixels=int(given.get("min_pixels") or size.get("shortest_edge") or 128 * 28 * 28),
        max_pixels=int(given.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 768),
        frame_tokens=None,
        scale=scale,
        shift=shift,
        is_plain=True,
        per_second=float(vision.get("tokens_per_second") or 4) if is_later else 0,
    )


def _scales(folder: Path, given: Settings) -> tuple[Channels, Channels]:
    """Return what the pixels of each channel are multiplied by, and what is added then."""
    mean, std = (_channels(folder, given, name) for name in ("image_mean", "image_std"))
    factor = float(given.get("rescale_factor") or 1 / 255)
    red, green, blue = (factor / s for s in std)
    shifts = [-m / s for m, s in zip(mean, std, strict=True)]
    return (red, green, blue), (shifts[0], shifts[1], shifts[2])


def _read(folder: Path, names: Sequence[str], part: str) -> Settings | None:
    """Return the settings of a processor, from whichever file has them; None: none has."""
    for name in names:
        given = _read_whole(folder, name)
        inner = given if name.startswith(("pre", "video_pre")) else given.get(part)
        if isinstance(inner, dict) and inner:
            return cast("dict[str, Any]", inner)
    return None


def _read_whole(folder: Path, name: str) -> Settings:
    """Return what a file has; {}: there is none, or it holds no object."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(folder, f"{name} cannot be read") from error
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _channels(folder: Path, given: Settings, name: str) -> list[float]:
    values = given.get(name) or [0.5, 0.5, 0.5]
    if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
        raise _wrong(folder, f"{name} is {values!r}")
    return [float(value) for value in values]


def _wrong(folder: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: {problem}.", remedy="Compare the files with the model's original."
    )
