"""Pixtral's encoder of images of any size: positions by rows and columns, layers like a decoder's.

Shapes: N patches, D hidden size. Source: Agrawal et al. 2024, "Pixtral 12B"; names as in Hugging
Face transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from headstock.graph.config import ModelConfig
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.vision import (
    EncoderAttention,
    EncoderNames,
    EncoderRotary,
    Grid,
    PatchEmbedding,
    Send,
    place_patches,
)
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.features import add_features
from headstock.ops.vision import pixel_values

EPS = 1e-5
NAMES = EncoderNames(attention="attention", qkv=("q_proj", "k_proj", "v_proj"), out="o_proj")


class PixtralConfig(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    hidden_act: str = "gelu"
    rope_theta: float = 10000.0
    rope_parameters: dict[str, Any] | None = None

    @property
    def theta(self) -> float:
        """Base of the frequencies."""
        return float((self.rope_parameters or {}).get("rope_theta") or self.rope_theta)

    @property
    def patch_bytes(self) -> int:
        """Bytes of a patch."""
        return self.num_channels * self.patch_size**2


class PixtralLayer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream."""

    def __init__(self, ctx: Context, c: PixtralConfig) -> None:
        size = c.hidden_size
        self.norm = RMSNorm(ctx, size, leaf="attention_norm", eps=EPS)
        self.attend = EncoderAttention(ctx, size, c.num_attention_heads, NAMES, has_bias=False)
        self.mlp_norm = RMSNorm(ctx, size, leaf="ffn_norm", eps=EPS)
        self.feed_forward = GatedMLP(ctx, size, c.intermediate_size, BY_CONFIG_NAME[c.hidden_act])

    def forward(
        self, x_ND: Tensor, sum_ND: Tensor | None, angles_NE: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output and the residual stream it is to be added to. [N, D] each"""
        x_ND, total_ND = self.norm(x_ND, sum_ND)
        x_ND = self.attend(x_ND, angles_NE, lengths)
        x_ND, total_ND = self.mlp_norm(x_ND, total_ND)
        return self.feed_forward(x_ND), total_ND


class PixtralLayers(Module):
    def __init__(self, ctx: Context, c: PixtralConfig) -> None:
        self.layers = [PixtralLayer(ctx, c) for _ in range(c.num_hidden_layers)]
        self._add = ctx.ops.resolve(add_features, ctx.spec(size=c.hidden_size))

    def forward(self, x_ND: Tensor, angles_NE: Tensor, lengths: Sequence[int]) -> Tensor:
        sum_ND = None
        for layer in self.layers:
            x_ND, sum_ND = layer(x_ND, sum_ND, angles_NE, lengths)
        return x_ND if sum_ND is None else self._add(x_ND, sum_ND)


class PixtralEncoder(Module):
    """Patches to hidden states.

    Args:
        ctx: What to build with.
        c: Sizes.
        merge: Patches in height and width that lie together.

    Attributes:
        max_side: Most patches in height or width.
    """

    def __init__(self, ctx: Context, c: PixtralConfig, *, merge: int) -> None:
        kernel = (c.num_channels, c.patch_size, c.patch_size)
        size = c.hidden_size
        self.patches = PatchEmbedding(ctx, kernel, size, leaf="patch_conv", has_bias=False)
        self.norm = RMSNorm(ctx, size, leaf="ln_pre", eps=EPS)
        self.transformer = PixtralLayers(ctx, c)
        # The last row and column of patches may stand out by what a token has.
        self.max_side = c.image_size // c.patch_size + merge
        head_dim = size // c.num_attention_heads
        self._rotary = EncoderRotary(ctx, head_dim, c.theta, self.max_side, takes_turns=True)
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
        x_ND = self.norm(self.patches(values_NP), None)[0]
        places = [place_patches(grid, self._merge) for grid in grids]
        angles_NE = self._rotary(send(np.concatenate(places, axis=1).astype(np.int32)))
        return self.transformer(x_ND, angles_NE, [h * w for t, h, w in grids for _ in range(t)])
