"""Qwen2-VL and Qwen2.5-VL: Qwen2 with positions on three axes, and an image encoder.

In Qwen2.5-VL most layers of the encoder attend within windows of the image.

Shapes: N patches, M = N / merge² tokens of images, D hidden size of the encoder, F the decoder's.
Source: Wang et al. 2024, "Qwen2-VL", and Bai et al. 2025, "Qwen2.5-VL Technical Report"; names as
in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.axes import AxialRotary, stacked_axes
from headstock.graph.config import read_config, require
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm, RMSNorm
from headstock.graph.vision import (
    ENCODER_ACTIVATIONS,
    JOINED,
    EncoderAttention,
    EncoderRotary,
    Grid,
    PatchEmbedding,
    PlainMLP,
    Send,
    place_patches,
)
from headstock.ops.activation_kinds import GELU
from headstock.ops.features import add_features
from headstock.ops.vision import pixel_values, take_patches
from headstock_models.llama import FULL, Decoder
from headstock_models.qwen2 import Qwen2Config
from headstock_models.qwen_vision import (
    EPS,
    MAX_SIDE,
    Named,
    QwenVisionConfig,
    VisionLayer,
    VisualForConditionalGeneration,
)
from headstock_models.stored_rows import renamed

NAMES: Sequence[tuple[str, str]] = (
    (r"^visual\.", "model.visual."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
)
"""What the hub's checkpoints call tensors, to what they are called today."""


class Qwen2VLVisionConfig(QwenVisionConfig, frozen=True, kw_only=True):
    """That of both families, by the names of later ones."""

    depth: int = 32
    hidden_act: str = "quick_gelu"
    patch_size: int = 14
    window_size: int = 0
    fullatt_block_indexes: tuple[int, ...] = ()
    is_gated: ClassVar[bool] = False

    def make_norm(self, ctx: Context, leaf: str) -> LayerNorm | RMSNorm:
        """Return one of the encoder's norms."""
        return LayerNorm(ctx, self.hidden_size, leaf=leaf, eps=EPS)

    def make_attention(self, ctx: Context) -> Module:
        """Return the attention of a layer."""
        return EncoderAttention(ctx, self.hidden_size, self.num_heads, JOINED)

    def make_mlp(self, ctx: Context) -> Module:
        """Return the feed-forward layer of a layer."""
        activation, factor = ENCODER_ACTIVATIONS[self.hidden_act]
        sizes = (self.hidden_size, self.intermediate_size, self.hidden_size)
        return PlainMLP(ctx, sizes, activation, ("fc1", "fc2"), factor)


class Qwen25VLVisionConfig(Qwen2VLVisionConfig, frozen=True, kw_only=True):
    hidden_size: int = 3584
    hidden_act: str = "silu"
    intermediate_size: int = 3420
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)

    def make_norm(self, ctx: Context, leaf: str) -> RMSNorm:
        return RMSNorm(ctx, self.hidden_size, leaf=leaf, eps=EPS)

    def make_mlp(self, ctx: Context) -> GatedMLP:
        activation, _ = ENCODER_ACTIVATIONS[self.hidden_act]
        sizes = (self.hidden_size, self.intermediate_size)
        return GatedMLP(ctx, *sizes, activation, has_bias=True)


class Qwen2VLMerger(Module):
    """Joins the patches of a square and projects them to the decoder's size."""

    def __init__(self, ctx: Context, c: Qwen2VLVisionConfig) -> None:
        self._joined = c.hidden_size * c.spatial_merge_size**2
        self.norm = c.make_norm(ctx, "ln_q")
        sizes = (self._joined, self._joined, c.out_hidden_size)
        self.mlp = PlainMLP(ctx, sizes, GELU, ("0", "2"))

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.mlp(self.norm(x_ND, None)[0].view(-1, self._joined))


class Qwen2VLEncoder(Module):
    """Patches to features of tokens.

    Attributes:
        merge: Patches in height and width that become one token.
        patch_bytes: Of a patch.
    """

    def __init__(self, ctx: Context, c: Qwen2VLVisionConfig) -> None:
        kernel = (c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
        patches = PatchEmbedding(ctx, kernel, c.hidden_size, leaf="proj", has_bias=False)
        self.patch_embed = Named(patches)
        self.blocks = [VisionLayer(ctx, c) for _ in range(c.depth)]
        self.merger = Qwen2VLMerger(ctx, c)
        self.merge = c.spatial_merge_size
        self.patch_bytes = int(np.prod(kernel))
        self._side = c.window_size // c.spatial_merge_size // c.patch_size
        self._full = frozenset(c.fullatt_block_indexes if self._side else range(c.depth))
        theta = float((c.rope_parameters or {}).get("rope_theta", 10000.0))
        self._rotary = EncoderRotary(ctx, c.hidden_size // c.num_heads, theta, MAX_SIDE)
        self._dtype = ctx.dtype
        self._pixels = ctx.ops.resolve(pixel_values, ctx.spec())
        self._add = ctx.ops.resolve(add_features, ctx.spec(size=c.hidden_size))
        self._take = ctx.ops.resolve(take_patches, ctx.spec(size=c.hidden_size))
        self._take_tokens = ctx.ops.resolve(take_patches, ctx.spec(size=c.out_hidden_size))

    def forward(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
    ) -> Tensor:
        """Return the features of tokens; see :class:`headstock.graph.vision.MediaModel`. [M, F]"""
        values_NP = self._pixels(pixels_NP, scale_C, shift_C, dtype=self._dtype)
        x_ND = self.patch_embed(values_NP)
        places_2N = np.concatenate([place_patches(grid, self.merge) for grid in grids], axis=1)
        whole = within = [h * w for t, h, w in grids for _ in range(t)]
        order_M = None
        if self._side:
            order_M, counts = windows(grids, self.merge, self._side)
            within = [count * self.merge**2 for count in counts]
            rows_N = (order_M[:, None] * self.merge**2 + np.arange(self.merge**2)).reshape(-1)
            x_ND, places_2N = self._take(x_ND, send(rows_N)), places_2N[:, rows_N]
        angles_NE = self._rotary(send(places_2N.astype(np.int32)))
        sum_ND = None
        for number, block in enumerate(self.blocks):
            lengths = whole if number in self._full else within
            x_ND, sum_ND = block(x_ND, sum_ND, angles_NE, lengths)
        x_ND = x_ND if sum_ND is None else self._add(x_ND, sum_ND)
        features_MF = self.merger(x_ND)
        if order_M is None:
            return features_MF
        return self._take_tokens(features_MF, send(np.argsort(order_M)))


def windows(grids: Sequence[Grid], merge: int, side: int) -> tuple[np.ndarray, list[int]]:
    """Return tokens in the order of windows, and how many each window has.

    Args:
        grids: Patches of images.
        merge: Patches in height and width that become a token.
        side: Tokens of a window in height and width; those at the edges may have fewer.

    Source:
        ``get_vision_window_index`` of Hugging Face transformers.
    """
    found: list[np.ndarray] = []
    begin = 0
    for frames, height, width in grids:
        shape = (frames, height // merge, width // merge)
        count = int(np.prod(shape))
        found += _windows_of(np.arange(begin, begin + count).reshape(shape), side)
        begin += count
    return np.concatenate(found), [len(window) for window in found]


def _windows_of(tokens_THW: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Yield the tokens of each window of one image."""
    frames, height, width = tokens_THW.shape
    for frame in range(frames):
        for top in range(0, height, side):
            for left in range(0, width, side):
                yield tokens_THW[frame, top : top + side, left : left + side].reshape(-1)


class Qwen2VLForConditionalGeneration(VisualForConditionalGeneration):
    """A decoder with an image encoder, and an output layer, perhaps tied to the embedding."""

    default_sections = (16, 24, 24)

    def axes(self, sections: Sequence[int]) -> list[int]:
        return stacked_axes(sections)

    def read_text(self, text: dict[str, Any]) -> Qwen2Config:
        require(text, use_sliding_window=(False,))
        return read_config(Qwen2Config, text)

    def rotary_dim(self, text: dict[str, Any], c: Qwen2Config) -> int:
        return c.sizes[2]

    def make_decoder(self, ctx: Context, c: Qwen2Config, rotary: AxialRotary) -> Decoder:
        return Decoder(ctx, c, {FULL: rotary})

    def read_vision(self, vision: dict[str, Any]) -> QwenVisionConfig:
        """Return the encoder's configuration, where ``hidden_size`` is the decoder's."""
        size = int(vision.get("embed_dim") or 1280)
        require(vision, hidden_act=ENCODER_ACTIVATIONS)
        given = vision | {
            "hidden_size": size,
            "out_hidden_size": vision.get("hidden_size") or 3584,
            "intermediate_size": int(size * (vision.get("mlp_ratio") or 4)),
        }
        return read_config(Qwen2VLVisionConfig, given)

    def make_encoder(self, ctx: Context, c: Qwen2VLVisionConfig) -> Qwen2VLEncoder:
        return Qwen2VLEncoder(ctx, c)

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names: the hub has older ones."""
        return renamed(index, NAMES)


class Qwen25VLForConditionalGeneration(Qwen2VLForConditionalGeneration):
    """The same with windows in the encoder, and norms and a gate as decoders have them."""

    def read_vision(self, vision: dict[str, Any]) -> QwenVisionConfig:
        require(vision, hidden_act=ENCODER_ACTIVATIONS)
        return read_config(Qwen25VLVisionConfig, vision)
