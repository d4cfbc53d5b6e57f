"""Images cut into tiles, each between words of its own. Runs in the decoding process.

A tile is a square that the encoder takes. Large images have several, and one of all of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from headstock.multimodal.layouts import CANVAS, FIT, MAX_SIDE, SPLITS, stretched


@dataclass(frozen=True, slots=True)
class Tile:
    """A square of an image.

    Attributes:
        image: In the size that the encoder takes.
        lead: Text before its tokens.
        trail: Text behind them.
    """

    image: Image.Image
    lead: str = ""
    trail: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Into what an image is cut.

    Attributes:
        rows: Of tiles; 0: there is only the one of all of the image.
        columns: Likewise.
        sizes: Heights and widths that it is resized to, one after another, before it is cut.
    """

    rows: int
    columns: int
    sizes: list[tuple[int, int]]

    @property
    def count(self) -> int:
        """Tiles, with the one of all of the image, where it does not have one alone."""
        count = self.rows * self.columns
        return 1 if count == 1 else count + 1


def split_plan(height: int, width: int, side: int, settings: Mapping[str, Any]) -> Plan:
    """Return how Idefics3 and SmolVLM cut an image: first it is made as large as is allowed.

    Source:
        ``Idefics3ImageProcessor`` of Hugging Face transformers.
    """
    tall, wide = _bounded(*stretched(height, width, settings["longest"]))
    if not settings["is_cut"]:
        return Plan(0, 0, [(tall, wide), (side, side)])
    ratio = wide / tall
    if wide >= tall:
        across = math.ceil(wide / side) * side
        down = math.ceil(int(across / ratio) / side) * side
    else:
        down = math.ceil(tall / side) * side
        across = math.ceil(int(down * ratio) / side) * side
    is_large = max(down, across) > side
    rows, columns = (down // side, across // side) if is_large else (0, 0)
    return Plan(rows, columns, [(tall, wide), (down, across)])


def _bounded(height: int, width: int) -> tuple[int, int]:
    """Return the size with sides of at most :data:`MAX_SIDE` pixels."""
    ratio = width / height
    if width >= height and width > MAX_SIDE:
        return max(int(MAX_SIDE / ratio), 1), MAX_SIDE
    if height > width and height > MAX_SIDE:
        return MAX_SIDE, max(int(MAX_SIDE * ratio), 1)
    return height, width


def split_tiles(
    image: Image.Image, plan: Plan, side: int, filter_: Image.Resampling, words: Mapping[str, str]
) -> list[Tile]:
    """Return the tiles row by row, then all of the image, with the words around each."""
    for size in plan.sizes:
        image = resized(image, size, filter_)
    around, whole = words["around"], words["whole"]
    tiles: list[Tile] = []
    for row in range(plan.rows):
        for column in range(plan.columns):
            lead = around + words["place"].format(row=row + 1, column=column + 1)
            lead = words["row_end"] + lead if row and not column else lead
            tiles.append(Tile(cropped(image, row, column, side), lead))
    lead = around + whole
    if tiles:
        lead = words["row_end"] + words["before_whole"] + lead
    return [*tiles, Tile(resized(image, (side, side), filter_), lead, around)]


def canvas_plan(height: int, width: int, side: int, settings: Mapping[str, Any]) -> Plan:
    """Return how InternVL cuts an image: into as many tiles as come nearest its aspect.

    Of those that come as near, more tiles are better, if the image has half their pixels.

    Source:
        ``get_optimal_tiled_canvas`` of GOT-OCR 2 in Hugging Face transformers.
    """
    if not settings["is_cut"]:
        return Plan(0, 0, [])
    most, least = settings["max_tiles"], settings["min_tiles"]
    shapes = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most + 1)
        if least <= columns * rows <= most
    ]
    nearest, found = math.inf, (1, 1)
    for columns, rows in sorted(shapes, key=math.prod):
        away = abs(width / height - columns / rows)
        is_filled = width * height > 0.5 * side * side * columns * rows
        if away < nearest or (away == nearest and is_filled):
            nearest, found = away, (columns, rows)
    columns, rows = found
    if columns * rows == 1:
        return Plan(0, 0, [])
    return Plan(rows, columns, [(rows * side, columns * side)])


def canvas_tiles(
    image: Image.Image, plan: Plan, side: int, filter_: Image.Resampling, words: Mapping[str, str]
) -> list[Tile]:
    """Return the tiles row by row, then all of the image; words are before and behind all."""
    canvas = image
    for size in plan.sizes:
        canvas = resized(canvas, size, filter_)
    squares = [
        cropped(canvas, row, column, side)
        for row in range(plan.rows)
        for column in range(plan.columns)
    ]
    squares.append(resized(image, (side, side), filter_))
    last = len(squares) - 1
    return [
        Tile(square, "" if place else words["begin"], "" if place < last else words["end"])
        for place, square in enumerate(squares)
    ]


def fit_plan(height: int, width: int, side: int, settings: Mapping[str, Any]) -> Plan:
    """Return how Llama 4 cuts an image: into the canvas of tiles that shrinks it least.

    Source:
        ``get_best_fit`` and ``Llama4ImageProcessor`` of Hugging Face transformers.
    """
    shapes = canvases(settings["max_tiles"])
    # Scales that differ by less than float32 tells are equal.
    down = np.array([rows * side for rows, _ in shapes], np.float32) / np.float32(height)
    across = np.array([columns * side for _, columns in shapes], np.float32) / np.float32(width)
    scales = np.minimum(down, across)
    larger = scales[scales >= 1]
    best = larger.min() if len(larger) else scales.max()
    chosen = [shape for shape, scale in zip(shapes, scales, strict=True) if scale == best]
    rows, columns = min(chosen, key=math.prod)
    tall = min(max(height, side), rows * side)
    wide = min(max(width, side), columns * side)
    by_height, by_width = tall / height, wide / width
    if by_width < by_height:
        tall = min(math.floor(height * by_width), tall)
    else:
        wide = min(math.floor(width * by_height), wide)
    return Plan(rows, columns, [(max(tall, 1), max(wide, 1))])


def canvases(most: int) -> list[tuple[int, int]]:
    """Return all rows and columns of at most so many tiles, those of one shape together."""
    shapes: dict[float, list[tuple[int, int]]] = {}
    for count in range(most, 0, -1):
        for rows in range(1, count + 1):
            if count % rows == 0:
                shapes.setdefault(rows / (count // rows), []).append((rows, count // rows))
    return [shape for same in shapes.values() for shape in same]


def fit_tiles(
    image: Image.Image, plan: Plan, side: int, filter_: Image.Resampling, words: Mapping[str, str]
) -> list[Tile]:
    """Return the tiles row by row, words between them; behind several, all of the image."""
    canvas = Image.new("RGB", (plan.columns * side, plan.rows * side))
    canvas.paste(resized(image, plan.sizes[0], filter_), (0, 0))
    if plan.rows * plan.columns == 1:
        return [Tile(canvas, words["begin"] + words["whole"], words["end"])]
    tiles: list[Tile] = []
    lead = words["begin"]
    for row in range(plan.rows):
        for column in range(plan.columns):
            tiles.append(Tile(cropped(canvas, row, column, side), lead))
            lead = words["beside"] if column < plan.columns - 1 else words["below"]
    whole = resized(image, (side, side), filter_)
    return [*tiles, Tile(whole, lead + words["whole"], words["end"])]


def resized(image: Image.Image, size: tuple[int, int], filter_: Image.Resampling) -> Image.Image:
    """Return an image with a height and a width."""
    height, width = size
    return image.resize((width, height), filter_)


def cropped(image: Image.Image, row: int, column: int, side: int) -> Image.Image:
    """Return a tile of an image."""
    left, top = column * side, row * side
    return image.crop((left, top, left + side, top + side))


Planner = Callable[[int, int, int, Mapping[str, Any]], Plan]
Cutter = Callable[[Image.Image, Plan, int, Image.Resampling, Mapping[str, str]], list[Tile]]
LAYOUTS: Mapping[str, tuple[Planner, Cutter]] = {
    SPLITS: (split_plan, split_tiles),
    CANVAS: (canvas_plan, canvas_tiles),
    FIT: (fit_plan, fit_tiles),
}
"""By the name of a layout: what plans, knowing sizes only, and what cuts."""
