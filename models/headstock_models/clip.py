"""CLIP's encoder of images: patches of a square, and a row that stands for all of it.

Shapes: N patches, P bytes of a patch, D hidden size, L places. Source: Radford et al. 2021,
"Learning Transferable Visual Models From Natural Language Supervision"; names as in Hugging Face
transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm
from headstock.graph.vision import (
    APART,
    ENCODER_ACTIVATIONS,
    EncoderLayer,
    Grid,
    PatchEmbedding,
    PositionTable,
    Send,
    place_patches,
)
from headstock.ops.features import add_features
from headstock.ops.vision import leave_out_first, pixel_values, put_before_runs
from headstock_models.image_text import LearnedRow
from headstock_models.siglip import SiglipConfig


class ClipConfig(SiglipConfig, frozen=True, kw_only=True):
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


class ClipEmbeddings(Module):
    """Patches to hidden states, a row before those of each image, and positions added."""

    def __init__(self, ctx: Context, c: ClipConfig) -> None:
        kernel = (c.num_channels, c.patch_size, c.patch_size)
        size = c.hidden_size
        self.patches = PatchEmbedding(ctx, kernel, size, leaf="patch_embedding", has_bias=False)
        self.first = LearnedRow(ctx, size, leaf="class_embedding")
        self.positions = PositionTable(ctx, c.side**2 + 1, size, leaf="position_embedding")
        self._side = c.side
        self._put = ctx.ops.resolve(put_before_runs, ctx.spec(size=size))

    def forward(self, values_NP: Tensor, grids: Sequence[Grid], send: Send) -> Tensor:
        places = [place_patches(grid, 1) for grid in grids]
        rows = [np.append(0, 1 + y * self._side + x).astype(np.int64) for y, x in places]
        rows_N1 = np.concatenate(rows)[:, None]
        lengths = [place.shape[1] for place in places]
        x_ND = self._put(self.patches(values_NP), self.first.values_D, lengths=lengths)
        return self.positions(x_ND, send(rows_N1), send(np.ones(rows_N1.shape, np.float32)))


class ClipLayers(Module):
    def __init__(self, ctx: Context, c: ClipConfig, count: int) -> None:
        sizes = (c.hidden_size, c.num_attention_heads, c.intermediate_size)
        activation, factor = ENCODER_ACTIVATIONS[c.hidden_act]
        self.layers = [
            EncoderLayer(ctx, *sizes, activation, eps=c.layer_norm_eps, names=APART, factor=factor)
            for _ in range(count)
        ]
        self._add = ctx.ops.resolve(add_features, ctx.spec(size=c.hidden_size))

    def forward(self, x_ND: Tensor, lengths: Sequence[int]) -> Tensor:
        sum_ND = None
        for layer in self.layers:
            x_ND, sum_ND = layer(x_ND, sum_ND, None, lengths)
        return x_ND if sum_ND is None else self._add(x_ND, sum_ND)


class ClipEncoder(Module):
    """Patches to what some layer makes of them, without the row that stands for the image.

    Args:
        ctx: What to build with.
        c: Sizes.
        num_layers: Layers that are computed.
    """

    def __init__(self, ctx: Context, c: ClipConfig, num_layers: int) -> None:
        self.embeddings = ClipEmbeddings(ctx, c)
        self.norm = LayerNorm(ctx, c.hidden_size, leaf="pre_layrnorm", eps=c.layer_norm_eps)
        self.encoder = ClipLayers(ctx, c, num_layers)
        self._dtype = ctx.dtype
        self._pixels = ctx.ops.resolve(pixel_values, ctx.spec())
        self._leave_out = ctx.ops.resolve(leave_out_first, ctx.spec(size=c.hidden_size))

    def forward(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
    ) -> Tensor:
        """Return the hidden states of patches; see :class:`headstock.graph.vision.MediaModel`."""
        values_NP = self._pixels(pixels_NP, scale_C, shift_C, dtype=self._dtype)
        x_ND = self.norm(self.embeddings(values_NP, grids, send), None)[0]
        lengths = [1 + int(np.prod(grid)) for grid in grids]
        return self._leave_out(self.encoder(x_ND, lengths), lengths=lengths)
