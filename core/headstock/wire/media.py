"""Images and videos on their way to the encoder: decoded, cut into patches, bounded in size."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

Grid = tuple[int, int, int]
"""Patches in time, height and width."""


class View(NamedTuple):
    """What the tokens of an image show of its patches, row by row.

    Attributes:
        rows: Of patches, from the middle of the grid; those around them are padding.
        columns: Likewise.
        tall: Rows of tokens that these are resampled to.
        wide: Tokens of a row.
        marks: Tokens beside these that are the same in every image: one after each row, one
            after the last, or none.
    """

    rows: int
    columns: int
    tall: int
    wide: int
    marks: int

    @property
    def num_tokens(self) -> int:
        """Tokens."""
        return self.tall * self.wide + self.marks


DIGEST_BYTES = 16
"""Of an item's digest: 128 bits."""


class MediaItem(msgspec.Struct, frozen=True, array_like=True):
    """One image, or one frame of a video, in a prompt.

    Attributes:
        begin: Place of its first token in the prompt.
        count: Tokens that it has there.
        digest: Of its pixels, its grid and what is done to them: equal where the encoder would
            make the same of them.
        grid: Its patches.
        scale: Multiplies the pixels of each channel.
        shift: Added to them then.
        pixels: Patch after patch, each channel's values together. uint8.
        view: What its tokens show of them; None: all, as the grid has it.
        time: Of a moment of a video on an axis of time, in positions from the first one.
        follows: Whether it is a moment of the same video as the item before it.
    """

    begin: int
    count: int
    digest: bytes
    grid: Grid
    scale: list[float]
    shift: list[float]
    pixels: bytes
    view: View | None = None
    time: int = 0
    follows: bool = False

    @property
    def end(self) -> int:
        """Place after its last token."""
        return self.begin + self.count


class MediaSpan(msgspec.Struct, frozen=True, array_like=True):
    """Where an item stands in a prompt.

    Attributes:
        begin: Place of its first token.
        count: Tokens that it has.
        grid: Its patches.
        time: As in :class:`MediaItem`.
        follows: Likewise.
    """

    begin: int
    count: int
    grid: Grid
    time: int = 0
    follows: bool = False


class Encode(msgspec.Struct, frozen=True, array_like=True):
    """Run the encoder on an item before the forward pass.

    Attributes:
        pages: Pages of the store that its features go to, in order.
        grid: Its patches.
        scale: As in :class:`MediaItem`.
        shift: Likewise.
        pixels: Likewise.
        view: Likewise.
    """

    pages: list[int]
    grid: Grid
    scale: list[float]
    shift: list[float]
    pixels: bytes
    view: View | None = None


class Features(msgspec.Struct, frozen=True, array_like=True):
    """The features of a slot's item lie in these pages, from this step on.

    Attributes:
        slot: Whose item.
        item: Which of its items.
        pages: In order.
    """

    slot: int
    item: int
    pages: list[int]


class MediaLimits(msgspec.Struct, frozen=True, array_like=True):
    """What a runner can take of images.

    Attributes:
        num_pages: Pages of the store of features, the null page included.
        page_tokens: Tokens a page holds.
        num_axes: Axes of a position.
        patches_per_token: Patches that become one token.
        patch_bytes: Of a patch.
        max_side: Most patches in height or width.
        is_whole: Whether all of an image that is not cached is computed in one step, since its
            tokens see each other.
        row_tokens: Tokens after each row of an image's tokens, which have no features.
        tile_side: Patches in height and width of the squares that the encoder takes, one after
            another; 0: it takes an image as it is. With it images may have a view.
        pooled_frames: Most frames of an item, which become as many tokens as one of them; 1:
            tokens of all frames stand one after another.
    """

    num_pages: int
    page_tokens: int
    num_axes: int
    patches_per_token: int
    patch_bytes: int
    max_side: int
    is_whole: bool = False
    row_tokens: int = 0
    tile_side: int = 0
    pooled_frames: int = 1

    def tokens_of(self, grid: Grid, view: View | None = None) -> int:
        """Return the tokens that an image of ``grid`` has in a prompt."""
        return self.features_of(grid, view) + self.row_tokens * self.rows_of(grid)

    def features_of(self, grid: Grid, view: View | None = None) -> int:
        """Return the tokens of an image that have features."""
        if view is not None:
            return view.num_tokens
        frames, height, width = grid
        frames = frames if self.pooled_frames == 1 else 1
        return frames * height * width // self.patches_per_token

    def rows_of(self, grid: Grid) -> int:
        """Return the rows that an image's tokens are in."""
        frames, height, _ = grid
        return frames * height // round(self.patches_per_token**0.5)

    @property
    def max_tokens(self) -> int:
        """Most tokens of an item."""
        return (self.num_pages - 1) * self.page_tokens
