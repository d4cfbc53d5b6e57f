"""SigLIP's encoder of images: patches of a square, with learned positions.

Shapes: N patches, P bytes of a patch, D hidden size. Source: Zhai et al. 2023, "Sigmoid Loss for
Language Image Pre-Training"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from headstock.graph.config import ModelConfig
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm
from headstock.graph.vision import (
    APART,
    EncoderLayer,
    Grid,
    PatchEmbedding,
    PositionTable,
    Send,
    place_patches,
)
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.features import add_features
from headstock.ops.vision import pixel_values


class SiglipConfig(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def side(self) -> int:
        """Patches of an image in height and width."""
        return self.image_size // self.patch_size

    @property
    def patch_bytes(self) -> int:
        """P."""
        return self.num_channels * self.patch_size**2


class SiglipEmbeddings(Module):
    """Patches to hidden states, with the positions added that they have in the square."""

    def __init__(self, ctx: Context, c: SiglipConfig, places_L: np.ndarray | None) -> None:
        kernel = (c.num_channels, c.patch_size, c.patch_size)
        self.patches = PatchEmbedding(ctx, kernel, c.hidden_size, leaf="patch_embedding")
        self._places_L = np.arange(c.side) if places_L is None else places_L
        self.positions = PositionTable(ctx, c.side**2, c.hidden_size, leaf="position_embedding")

    def forward(self, values_NP: Tensor, places_2N: np.ndarray, send: Send) -> Tensor:
        tall_N, wide_N = self._places_L[places_2N]
        rows_N = tall_N * self.positions.side + wide_N
        weights_N1 = np.ones((len(rows_N), 1), np.float32)
        rows_N1 = rows_N.astype(np.int64)[:, None]
        return self.positions(self.patches(values_NP), send(rows_N1), send(weights_N1))


class SiglipLayers(Module):
    def __init__(self, ctx: Context, c: SiglipConfig, count: int) -> None:
        sizes = (c.hidden_size, c.num_attention_heads, c.intermediate_size)
        activation = BY_CONFIG_NAME[c.hidden_act]
        self.layers = [
            EncoderLayer(ctx, *sizes, activation, eps=c.layer_norm_eps, names=APART)
            for _ in range(count)
        ]

    def forward(self, x_ND: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return the last layer's output and the residual stream it is to be added to."""
        sum_ND = None
        for layer in self.layers:
            x_ND, sum_ND = layer(x_ND, sum_ND, None, lengths)
        return x_ND, sum_ND


class SiglipEncoder(Module):
    """Patches to hidden states, normalised, or to what some layer makes of them.

    Args:
        ctx: What to build with.
        c: Sizes.
        merge: Patches in height and width that lie together.
        num_layers: Layers that are computed, and nothing is normalised; None: all, and it is.
        places_L: Place in the table of positions of each row and column of patches; None: its own.
    """

    def __init__(
        self,
        ctx: Context,
        c: SiglipConfig,
        *,
        merge: int,
        num_layers: int | None = None,
        places_L: np.ndarray | None = None,
    ) -> None:
        self.embeddings = SiglipEmbeddings(ctx, c, places_L)
        count = c.num_hidden_layers if num_layers is None else num_layers
        self.encoder = SiglipLayers(ctx, c, count)
        self.norm = None
        if num_layers is None:
            eps = c.layer_norm_eps
            self.norm = LayerNorm(ctx, c.hidden_size, leaf="post_layernorm", eps=eps)
        self._add = ctx.ops.resolve(add_features, ctx.spec(size=c.hidden_size))
        self._merge, self._dtype = merge, ctx.dtype
        self._pixels = ctx.ops.resolve(pixel_values, ctx.spec())

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
        places = [place_patches(grid, self._merge) for grid in grids]
        x_ND = self.embeddings(values_NP, np.concatenate(places, axis=1), send)
        lengths = [h * w for t, h, w in grids for _ in range(t)]
        x_ND, sum_ND = self.encoder(x_ND, lengths)
        if self.norm is not None:
            return self.norm(x_ND, sum_ND)[0]
        return x_ND if sum_ND is None else self._add(x_ND, sum_ND)
