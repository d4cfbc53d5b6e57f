"""What a family of models makes of images and videos, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Padded:
    """How an image keeps its size where it can, and is made up to whole tokens with black.

    Attributes:
        max_patches: Most that it may have without what is made up; larger ones are shrunk.
        max_side: Most patches in height or width.
    """

    max_patches: int
    max_side: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFamily:
    """How videos are sampled and cut: as images are, but for this.

    Attributes:
        token_id: Id that stands for a video in a tokenised prompt, once before it is expanded.
        sampling: Which of :data:`headstock.multimodal.films.RULES` chooses frames.
        scale: Multiplies the pixels of each channel.
        shift: Added to them then.
        marks: Ids before the tokens of each moment, after its time, and behind them; None: it has
            neither marks nor a time.
        feature_id: Id of the tokens that have its features; None: ``token_id``.
        words: Text around moments; see :func:`headstock.multimodal.films.words_of`. {}: none.
        fps: Frames to look at a second; 0: the rule knows.
        min_frames: Fewest frames to look at.
        max_frames: Most; 0: as many as ``fps`` says.
        max_seconds: Of a video that is looked at so many times a second; fewer times of longer
            ones.
        min_pixels: Fewest pixels of all frames together.
        max_pixels: Most.
        frame_tokens: Most tokens of a frame; None: as many as the pixels allow.
        size: Height and width that each frame is resized to; None: as the pixels allow.
        longest: Pixels that the longer side is brought to before that; 0: it is not.
        is_halved: Whether tokens are half as many as patches in height and width, with a mark
            after the last moment.
        padded: As in :class:`Family`, of each frame.
        pooled: Frames of a moment, which have as many tokens as one of them; the last moment may
            have fewer. 0: a moment has as many as a patch has, :attr:`Family.frames`.
        is_filled: As in :class:`Family`, of each frame.
        is_plain: Whether moments stand one after another, without marks and times, and have
            positions on an axis of time; then the bounds of pixels are of each frame.
        per_second: Positions that a second takes; 0: each moment takes one.
    """

    token_id: int
    sampling: str
    scale: tuple[float, float, float]
    shift: tuple[float, float, float]
    marks: tuple[int, int] | None = None
    feature_id: int | None = None
    words: Mapping[str, str] = field(default_factory=dict[str, str])
    fps: float = 0
    min_frames: int = 0
    max_frames: int = 0
    max_seconds: float = 0
    min_pixels: int = 0
    max_pixels: int = 0
    frame_tokens: int | None = None
    size: tuple[int, int] | None = None
    longest: int = 0
    is_halved: bool = False
    padded: Padded | None = None
    pooled: int = 0
    is_filled: bool = False
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
        padded: How it is shrunk and made up to whole tokens; None: as the other fields say.
        is_filled: Whether it is made as large as ``max_pixels`` allow, in its aspect.
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
    padded: Padded | None = None
    is_filled: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)
