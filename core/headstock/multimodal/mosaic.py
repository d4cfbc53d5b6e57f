"""Images of any resolution as squares that an encoder takes. Runs in the decoding process.

Of each there is a small picture of all of it, and a mosaic of tiles in the size that fits it best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

MAX_SHRINK = 1.1
"""Times that a side of a mosaic may have too many tokens before it is resampled."""
DIGITS = 7
"""Of a side in tokens, before it is cut to a whole number."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Tokens of a mosaic.

    Attributes:
        rows: Of patches that are not padding.
        columns: Likewise.
        tall: Rows of tokens.
        wide: Tokens of a row.
    """

    rows: int
    columns: int
    tall: int
    wide: int

    @property
    def count(self) -> int:
        """Tokens, with a mark after each row."""
        return self.tall * (self.wide + 1)


def best_size(height: int, width: int, sizes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the size, of those allowed, that keeps the most pixels and wastes the fewest.

    Source:
        ``select_best_resolution`` of Hugging Face transformers.
    """

    def kept_and_wasted(size: Sequence[int]) -> tuple[int, int]:
        tall, wide = size
        scale = min(wide / width, tall / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - tall * wide

    # Of equal ones the first.
    found = max(sizes, key=kept_and_wasted)
    return found[0], found[1]


def shown_of(
    height: int, width: int, grid: tuple[int, int], side: int, max_tiles: int | None
) -> Shown:
    """Return what the tokens of a mosaic show of it.

    Args:
        height: Of the image as it was sent.
        width: Likewise.
        grid: Patches of the mosaic in height and width.
        side: Patches of a tile in height and width.
        max_tiles: Tokens are resampled to about as many as these have; None: they are not.

    Source:
        ``unpad_image`` and ``pack_image_features`` of LLaVA-OneVision in Hugging Face transformers.
    """
    rows, columns = grid
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), DIGITS))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), DIGITS))) // 2 * 2
    tall, wide = rows, columns
    if max_tiles is not None:
        ratio = math.sqrt(rows * columns / (max_tiles * side**2))
        if ratio > MAX_SHRINK:
            tall, wide = int(rows // ratio), int(columns // ratio)
    return Shown(rows, columns, tall, wide)


def mosaic_of(image: Image.Image, size: tuple[int, int], filter_: Image.Resampling) -> Image.Image:
    """Return an image resized into ``size`` (height, width), with black on two sides of it."""
    tall, wide = size
    by_width, by_height = wide / image.width, tall / image.height
    if by_width < by_height:
        width, height = wide, min(math.ceil(image.height * by_width), tall)
    else:
        width, height = min(math.ceil(image.width * by_height), wide), tall
    canvas = Image.new("RGB", (wide, tall))
    resized = image.resize((width, height), filter_)
    canvas.paste(resized, ((wide - width) // 2, (tall - height) // 2))
    return canvas


def tiles_of(image: Image.Image, side: int) -> list[Image.Image]:
    """Return the tiles of a mosaic, row by row."""
    return [
        image.crop((left, top, left + side, top + side))
        for top in range(0, image.height, side)
        for left in range(0, image.width, side)
    ]


def padded_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Return an image in the middle of a square."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas
