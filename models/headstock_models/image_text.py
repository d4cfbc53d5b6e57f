"""What families have in common whose tokens of images have features instead of embeddings.

An encoder (``vision_tower``), a projector and a decoder of text, whose positions have one axis.

Shapes: T tokens, D hidden size; N patches, M tokens of images, F features of a token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding
from headstock.graph.module import Layer, Leaf, Module
from headstock.graph.source import Source
from headstock.graph.vision import Grid, Moment, Send, View
from headstock.ops.attention import StepBatch
from headstock.ops.media import place_features
from headstock.quantization.plan import Layout, Role

NAMES: Sequence[tuple[str, str]] = (
    (r"^(language_model\.|model\.language_model\.)lm_head\.", "lm_head."),
    (r"^(model\.)?language_model\.(model\.)?", "model.language_model."),
    (r"^(model\.)?vision_tower\.(vision_model\.)?", "model.vision_tower."),
    (r"^(model\.)?multi_modal_projector\.", "model.multi_modal_projector."),
    (r"^(model\.)?image_newline$", "model.image_newline"),
)
"""What checkpoints call tensors, old ones and new, to what they are called here."""
NO_IMAGES = "it is of images, and the model is served for its text"
"""Why a tensor is not read."""


class TextOnly(Module):
    """Where the decoder of text is in a model of images that is served without them."""

    def __init__(self, decoder: Module) -> None:
        self.language_model = decoder
        self.forward = decoder.forward


def image_text_names(index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """Return a checkpoint's tensors by the names of :class:`ImageTextModel`'s leaves."""
    named: dict[str, StoredTensor] = {}
    for name, tensor in index.items():
        for old, new in NAMES:
            name, count = re.subn(old, new, name)
            if count:
                break
        named[name] = tensor
    return named


Encode = Callable[[Tensor, Sequence[Grid], Tensor, Tensor, Send], Tensor]
"""See :meth:`headstock.graph.vision.MediaModel.encode`."""


Arrange = Callable[[Tensor, Sequence[Grid], Sequence[View | None], Send], Tensor]
"""Turns features of patches, tile after tile, into those of tokens. [N, F] -> [M, F]"""


def tiles_of(grid: Grid, side: int) -> list[Grid]:
    """Return the grids that the encoder takes for one: its tiles, or itself if ``side`` is 0."""
    frames, height, width = grid
    if not side:
        return [grid]
    return [(1, side, side)] * (frames * (height // side) * (width // side))


class TextDecoder(Protocol):
    """What a family's decoder of text is made of."""

    embed: Embedding
    layers: list[Any]
    norm: Any


class LearnedRow(Layer):
    """A learned vector, such as the one that stands for an image as a whole.

    Args:
        ctx: What to build with.
        size: Of it.
        leaf: Checkpoint name.
        extents: Extents of 1 that the checkpoint has before its size.
    """

    def __init__(self, ctx: Context, size: int, *, leaf: str, extents: int = 0) -> None:
        self._leaf, self._extents = leaf, extents
        self.values_D = torch.empty(size, dtype=ctx.dtype, device=ctx.device.torch_device)

    def leaves(self) -> Sequence[Leaf]:
        """Return the vector."""
        shape = (*[1] * self._extents, *self.values_D.shape)
        return [Leaf(self._leaf, shape, Role.BIAS)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the vector is small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy the vector."""
        self.values_D.copy_(source.read(0, source.shape[0])["weight"].flatten())

    @property
    def num_bytes(self) -> int:
        """Bytes of the vector."""
        return self.values_D.nbytes


class ImageDecoder(Module):
    """A decoder of text; tokens of images have features instead of embeddings."""

    def __init__(self, ctx: Context, decoder: TextDecoder, size: int) -> None:
        self.embed, self.layers, self.norm = decoder.embed, decoder.layers, decoder.norm
        self._place = ctx.ops.resolve(place_features, ctx.spec(size=size))

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embed(ids_T), None
        if batch.media is not None:
            x_TD = self._place(x_TD, batch.media.features_MF, batch.media.rows_T)
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


class ImageTextModel(Module):
    def __init__(self, tower: Module, projector: Module, decoder: Module) -> None:
        self.vision_tower = tower
        self.multi_modal_projector = projector
        self.language_model = decoder

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        return self.language_model(ids_T, batch)

    def encode(self, pixels_NP: Tensor, grids: Sequence[Grid], *more: Any) -> Tensor:
        """Return features of tokens, of the pixels and what the tower takes beside them. [M, F]"""
        return self.multi_modal_projector(self.vision_tower(pixels_NP, grids, *more))


class PlainMedia:
    """How the runner feeds images to a model whose positions have one axis.

    See :class:`headstock.graph.vision.MediaModel`.

    Args:
        encode: Pixels to features, as there.
        feature_size: F.
        merge: Patches in height and width that become one token.
        patch_bytes: Of a patch.
        max_side: Most patches in height or width.
        sees_spans: Whether tokens of an image see all of it.
        row_tokens: Tokens after each row of an image's, which have no features.
        tile_side: Patches in height and width of a tile; 0: there are none.
        pooled_frames: Frames of an item that become one, at most; 1: none do.
        arrange: Makes the features of tokens of those of patches, as views have them.
    """

    num_axes = 0

    def __init__(
        self,
        encode: Encode,
        *,
        feature_size: int,
        merge: int,
        patch_bytes: int,
        max_side: int,
        sees_spans: bool = False,
        row_tokens: int = 0,
        tile_side: int = 0,
        pooled_frames: int = 1,
        arrange: Arrange | None = None,
    ) -> None:
        self._encode = encode
        self.feature_size = feature_size
        self.patches_per_token = merge**2
        self.patch_bytes = patch_bytes
        self.max_side = max_side
        self.sees_spans = sees_spans
        self.row_tokens = row_tokens
        self.tile_side = tile_side
        self.pooled_frames = pooled_frames
        self._arrange = arrange

    def encode(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
        views: Sequence[View | None] = (),
    ) -> Tensor:
        tiles = [tile for grid in grids for tile in tiles_of(grid, self.tile_side)]
        features_MF = self._encode(pixels_NP, tiles, scale_C, shift_C, send)
        if self._arrange is None or not any(views):
            assert not any(views), "images have no views where none are arranged"
            return features_MF
        return self._arrange(features_MF, grids, views, send)

    def shifts(
        self, begins: Sequence[int], grids: Sequence[Grid], moments: Sequence[Moment] = ()
    ) -> tuple[np.ndarray, int]:
        return np.zeros((0, 0), np.int32), 0
