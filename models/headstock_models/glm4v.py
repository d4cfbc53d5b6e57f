"""GLM-4.1V, 4.5V and 4.6V: GLM-4 with positions on three axes, and an image encoder.

Shapes: N patches, M = N / merge² tokens of images, D hidden size of the encoder, F the decoder's.
Source: GLM-V team 2025, "GLM-4.1V-Thinking and GLM-4.5V"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.axes import AxialRotary, stacked_axes
from headstock.graph.build import Model
from headstock.graph.config import read_config, require
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm, RMSNorm
from headstock.graph.rotary import rotary_size
from headstock.graph.source import Source
from headstock.graph.stacked import Stacked, split_stacked
from headstock.graph.vision import (
    EncoderAttention,
    EncoderNames,
    EncoderRotary,
    Grid,
    PatchEmbedding,
    PositionTable,
    Send,
    place_patches,
)
from headstock.ops.activation import activate
from headstock.ops.activation_kinds import BY_CONFIG_NAME, GELU
from headstock.ops.linear import CanonicalWeight
from headstock.ops.vision import pixel_values
from headstock.quantization.plan import Layout
from headstock_models.glm4 import Glm4Config
from headstock_models.glm4_moe import Glm4MoeConfig
from headstock_models.llama import FULL, Decoder, LlamaConfig
from headstock_models.qwen_vision import (
    MAX_SIDE,
    QwenVisionConfig,
    VisionLayer,
    VisualForConditionalGeneration,
)

MERGER_EPS = 1e-5
CUBIC = -0.75
"""Slope of the cubic that positions are resampled with."""
TAPS = np.arange(-1, 3)
"""Places that it is made of, beside the one below."""
MOE = "glm4v_moe_text"
STACKS = {
    "experts.gate_up_proj": Stacked("experts", ("gate_proj", "up_proj")),
    "experts.down_proj": Stacked("experts", ("down_proj",)),
}


class Glm4vTextConfig(Glm4Config, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5
    attention_bias: bool = True


class Glm4vMoeTextConfig(Glm4MoeConfig, frozen=True, kw_only=True):
    attention_bias: bool = True


class Glm4vVisionConfig(QwenVisionConfig, frozen=True, kw_only=True):
    depth: int = 24
    hidden_size: int = 1536
    hidden_act: str = "silu"
    attention_bias: bool = False
    num_heads: int = 12
    image_size: int = 336
    patch_size: int = 14
    rms_norm_eps: float = 1e-5
    out_hidden_size: int = 4096
    intermediate_size: int = 13696

    def make_norm(self, ctx: Context, leaf: str) -> RMSNorm:
        """Return one of the encoder's norms."""
        return RMSNorm(ctx, self.hidden_size, leaf=leaf, eps=self.rms_norm_eps)

    def make_attention(self, ctx: Context) -> Module:
        """Return the attention of a layer."""
        return Glm4vAttention(ctx, self)

    def make_mlp(self, ctx: Context) -> GatedMLP:
        """Return the feed-forward layer of a layer."""
        activation = BY_CONFIG_NAME[self.hidden_act]
        return GatedMLP(ctx, self.hidden_size, self.out_hidden_size, activation)

    @property
    def merger_size(self) -> int:
        """Features between in the merger."""
        return self.intermediate_size


class Glm4vAttention(EncoderAttention):
    """Attention whose output matrix has no bias, whatever the others have."""

    def __init__(self, ctx: Context, c: Glm4vVisionConfig) -> None:
        size = c.hidden_size
        super().__init__(ctx, size, c.num_heads, EncoderNames(), has_bias=c.attention_bias)
        self.out = Linear(ctx, size, {"proj": size})


class SquareConvolution(PatchEmbedding):
    """A convolution over the patches of a square, which lie one after another."""

    def load(self, name: str, source: Source) -> None:
        """Take the kernel as a matrix, its columns by patches, or the bias."""
        Linear.load(self, name, source if name.endswith("bias") else _ByPatches(source))


class _ByPatches:
    """A kernel whose rows become those of a matrix, patch after patch."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.layout: Layout = source.layout
        self.shape = (source.shape[0], int(np.prod(source.shape[1:])))

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end)."""
        kernel = self._source.read(begin, end)["weight"]
        return {"weight": kernel.flatten(2).transpose(1, 2).flatten(1).contiguous()}


class Glm4vMerger(Module):
    """A product, a norm and a feed-forward layer for each token."""

    def __init__(self, ctx: Context, c: Glm4vVisionConfig, intermediate_size: int) -> None:
        size = c.out_hidden_size
        self.first = Linear(ctx, size, {"proj": size})
        self.norm = LayerNorm(ctx, size, leaf="post_projection_norm", eps=MERGER_EPS)
        self.mlp = GatedMLP(ctx, size, intermediate_size, BY_CONFIG_NAME[c.hidden_act])
        spec = ctx.spec(features=GELU.features, size=size)
        self._activate = ctx.ops.resolve(activate, spec)

    def children(self) -> Any:
        """Yield the parts; those of the feed-forward layer have no name of their own."""
        yield "first", self.first
        yield "norm", self.norm
        yield from self.mlp.children()

    def forward(self, x_MF: Tensor) -> Tensor:
        """Return the features of tokens. [M, F]"""
        x_MF = self.norm(self.first(x_MF), None)[0]
        return self.mlp(self._activate(x_MF, activation=GELU))


class GlmEncoder(Module):
    """Patches to features of tokens; where patches stand is in the angles of attention alone.

    Attributes:
        merge: Patches in height and width that become one token.
        patch_bytes: Of a patch.
    """

    def __init__(self, ctx: Context, c: Glm4vVisionConfig) -> None:
        kernel = (c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
        size, merge = c.hidden_size, c.spatial_merge_size
        self.patches = PatchEmbedding(ctx, kernel, size, leaf="patch_embed.proj")
        self.blocks = [VisionLayer(ctx, c) for _ in range(c.depth)]
        self.last_norm = c.make_norm(ctx, "post_layernorm")
        square = (size, merge, merge)
        self.join = SquareConvolution(ctx, square, c.out_hidden_size, leaf="downsample")
        self.merger = Glm4vMerger(ctx, c, c.merger_size)
        self.merge = merge
        self.patch_bytes = int(np.prod(kernel))
        theta = float((c.rope_parameters or {}).get("rope_theta", 10000.0))
        self._rotary = EncoderRotary(ctx, size // c.num_heads, theta, MAX_SIDE)
        self._joined, self._dtype = size * merge**2, ctx.dtype
        self._pixels = ctx.ops.resolve(pixel_values, ctx.spec())

    def place(
        self, x_ND: Tensor, places: Sequence[np.ndarray], grids: Sequence[Grid], send: Send
    ) -> Tensor:
        """Return the patches as the first layer takes them: as they are. [N, D]"""
        return x_ND

    def forward(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
    ) -> Tensor:
        """Return the features of tokens; see :class:`headstock.graph.vision.MediaModel`. [M, F]"""
        x_ND = self.patches(self._pixels(pixels_NP, scale_C, shift_C, dtype=self._dtype))
        places = [place_patches(grid, self.merge) for grid in grids]
        x_ND, sum_ND = self.place(x_ND, places, grids, send), None
        angles_NE = self._rotary(send(np.concatenate(places, axis=1).astype(np.int32)))
        lengths = [h * w for t, h, w in grids for _ in range(t)]
        for block in self.blocks:
            x_ND, sum_ND = block(x_ND, sum_ND, angles_NE, lengths)
        x_ND = self.last_norm(x_ND, sum_ND)[0]
        return self.merger(self.join(x_ND.view(-1, self._joined)))


class Glm4vEncoder(GlmEncoder):
    """The same with a norm of the patches and a table of positions, which is resampled."""

    def __init__(self, ctx: Context, c: Glm4vVisionConfig) -> None:
        super().__init__(ctx, c)
        self.first_norm = c.make_norm(ctx, "post_conv_layernorm")
        num_places, leaf = (c.image_size // c.patch_size) ** 2, "embeddings.position_embedding"
        self.positions = PositionTable(ctx, num_places, c.hidden_size, leaf=leaf)

    def place(
        self, x_ND: Tensor, places: Sequence[np.ndarray], grids: Sequence[Grid], send: Send
    ) -> Tensor:
        x_ND = self.first_norm(x_ND, None)[0]
        side = self.positions.side
        taps = [resample_cubic(p, grid, side) for p, grid in zip(places, grids, strict=True)]
        rows_NB = np.concatenate([rows for rows, _ in taps])
        weights_NB = np.concatenate([weights for _, weights in taps])
        return self.positions(x_ND, send(rows_NB), send(weights_NB))


def resample_cubic(places_2N: np.ndarray, grid: Grid, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of a square table around each patch, and their weights. [N, 16] each

    The edges of both grids coincide; beyond the table its outermost places go on.

    Source:
        ``grid_sample`` of PyTorch, bicubic, with corners that are not aligned.
    """
    taps, weights = [], []
    for place_N, extent in zip(places_2N, grid[1:], strict=True):
        share_N = (place_N.astype(np.float32) + np.float32(0.5)) / np.float32(extent)
        exact_N = share_N * np.float32(side) - np.float32(0.5)
        below_N = np.floor(exact_N)
        away_N4 = np.abs((exact_N - below_N)[:, None] - TAPS.astype(np.float32))
        taps.append(np.clip(below_N[:, None].astype(np.int64) + TAPS, 0, side - 1))
        weights.append(_cubic(away_N4))
    rows = taps[0][:, :, None] * side + taps[1][:, None, :]
    shares = weights[0][:, :, None] * weights[1][:, None, :]
    count = places_2N.shape[1]
    return rows.reshape(count, -1), shares.reshape(count, -1).astype(np.float32)


def _cubic(away: np.ndarray) -> np.ndarray:
    """Return the weight of what is so far away, of 0 to 2 places."""
    near = ((CUBIC + 2) * away - (CUBIC + 3)) * away * away + 1
    far = ((CUBIC * away - 5 * CUBIC) * away + 8 * CUBIC) * away - 4 * CUBIC
    return np.where(away <= 1, near, far)


class Glm4vForConditionalGeneration(VisualForConditionalGeneration):
    """A decoder with an image encoder, and an output layer, perhaps tied to the embedding."""

    default_sections = (8, 12, 12)
    vision_type = Glm4vVisionConfig
    text_types: ClassVar[Sequence[str]] = ("glm4v_text", MOE)
    """What the decoder's configuration may call itself; the first where it does not."""

    def axes(self, sections: Sequence[int]) -> list[int]:
        return stacked_axes(sections)

    def read_text(self, text: dict[str, Any]) -> LlamaConfig:
        kind = text.get("model_type") or self.text_types[0]
        require({"model_type": kind}, model_type=self.text_types)
        if kind != MOE:
            self.is_interleaved = True
            return read_config(Glm4vTextConfig, {"head_dim": None, **text})
        # transformers 5 may save what the hub calls n_routed_experts by another name.
        named = {"n_routed_experts": text.get("num_local_experts")}
        return read_config(Glm4vMoeTextConfig, named | text)

    def rotary_dim(self, text: dict[str, Any], c: LlamaConfig) -> int:
        return rotary_size(text, c.sizes[2], share=1.0)

    def make_decoder(self, ctx: Context, c: LlamaConfig, rotary: AxialRotary) -> Decoder:
        return Decoder(ctx, c, {FULL: rotary})

    def make_encoder(self, ctx: Context, c: Any) -> Module:
        return Glm4vEncoder(ctx, c)

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        self.is_interleaved = False
        super().__init__(ctx, config)
        count = (config.get("text_config") or config).get("num_hidden_layers")
        drafts = rf"language_model\.layers\.{count}\."
        self.skip = {**Model.skip, drafts: "a layer that drafts tokens to come"}

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors with a matrix for each expert."""
        return split_stacked(index, STACKS)


class Glm4vMoeForConditionalGeneration(Glm4vForConditionalGeneration):
    """The same with experts, and halves of heads rotated instead of neighbours."""

    text_types = (MOE, "glm4v_text")


class Glm46VForConditionalGeneration(Glm4vForConditionalGeneration):
    """Either of both; the configuration of the decoder says which."""
