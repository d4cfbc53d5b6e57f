"""Llama 4 with images: an encoder of tiles with a row for all of each, squares of it, a decoder.

Shapes: N patches, P values of a patch, M = N / merge² tokens of images, D hidden size of the
encoder, E size of its heads, F hidden size of the decoder. Source: Meta 2025, "The Llama 4 herd";
names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require, section
from headstock.graph.context import Context
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Leaf, Module
from headstock.graph.norm import LayerNorm
from headstock.graph.source import Source
from headstock.graph.stacked import split_stacked
from headstock.graph.vision import (
    EncoderRotary,
    Grid,
    PlainMLP,
    PositionTable,
    Send,
    encoder_context,
    place_patches,
)
from headstock.ops.activation import activate
from headstock.ops.activation_kinds import GELU
from headstock.ops.features import add_features
from headstock.ops.linear import CanonicalWeight
from headstock.ops.vision import encoder_attention, leave_out_first, pixel_values, put_before_runs
from headstock.quantization.plan import Layout
from headstock_models.image_text import ImageDecoder, ImageTextModel, LearnedRow, PlainMedia
from headstock_models.llama import Decoder
from headstock_models.llama4 import STACKS, Llama4ForCausalLM

EPS = 1e-5
QKV: Sequence[str] = ("q_proj", "k_proj", "v_proj")
NAMES = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
"""What checkpoints call tensors, to what they are called here."""


class Llama4VisionConfig(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int = 768
    intermediate_size: int = 5632
    num_hidden_layers: int = 34
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 448
    patch_size: int = 14
    vision_output_dim: int = 7680
    projector_input_dim: int = 4096
    projector_output_dim: int = 4096
    rope_theta: float = 10000.0
    rope_parameters: dict[str, Any] | None = None

    @property
    def theta(self) -> float:
        """Base of the frequencies."""
        return float((self.rope_parameters or {}).get("rope_theta") or self.rope_theta)

    @property
    def side(self) -> int:
        """Patches of a tile in height and width."""
        return self.image_size // self.patch_size

    @property
    def patch_bytes(self) -> int:
        """P."""
        return self.num_channels * self.patch_size**2

    @property
    def head_dim(self) -> int:
        """E."""
        return self.hidden_size // self.num_attention_heads


class HalvedLinear(Linear):
    """Makes queries, keys and values; features that rotate together lie half a head apart.

    In the checkpoint they are neighbours. Attention is the same if queries and keys agree.
    """

    def __init__(self, ctx: Context, c: Llama4VisionConfig) -> None:
        self._head_dim = c.head_dim
        leaves: dict[str, int | Part] = dict.fromkeys(QKV, c.hidden_size)
        super().__init__(ctx, c.hidden_size, leaves, has_bias=True)

    def load(self, name: str, source: Source) -> None:
        """Take a matrix or a bias, the rows of queries and keys by halves."""
        is_value = name.startswith("v_proj")
        super().load(name, source if is_value else _Halves(source, self._head_dim))


class _Halves:
    """A tensor whose rows come by heads, of each the even ones and then the odd ones."""

    def __init__(self, source: Source, head_dim: int) -> None:
        self._source = source
        self.layout: Layout = source.layout
        self.shape = source.shape
        rows = torch.arange(source.shape[0]).view(-1, head_dim // 2, 2)
        self._rows = rows.transpose(1, 2).reshape(-1)

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end)."""
        whole = self._source.read(0, self.shape[0])
        return {name: part[self._rows[begin:end]] for name, part in whole.items()}


class FlatTable(PositionTable):
    """Positions whose tensor has the name itself."""

    def leaves(self) -> Sequence[Leaf]:
        (leaf,) = super().leaves()
        return [replace(leaf, name=self._leaf)]


class Llama4VisionAttention(Module):
    """W_o attend(rotate(W_q x), rotate(W_k x), W_v x) among the rows of a tile."""

    alias = "self_attn"

    def __init__(self, ctx: Context, c: Llama4VisionConfig) -> None:
        self.qkv = HalvedLinear(ctx, c)
        self.out = Linear(ctx, c.hidden_size, {"o_proj": c.hidden_size}, has_bias=True)
        self._num_heads = c.num_attention_heads
        spec = ctx.spec(num_heads=self._num_heads, head_dim=c.head_dim)
        self._attend = ctx.ops.resolve(encoder_attention, spec)

    def forward(self, x_ND: Tensor, angles_NE: Tensor, lengths: Sequence[int]) -> Tensor:
        qkv_NC = self.qkv(x_ND)
        out = self._attend(qkv_NC, angles_NE, lengths=lengths, num_heads=self._num_heads)
        return self.out(out)


class Llama4VisionLayer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream."""

    def __init__(self, ctx: Context, c: Llama4VisionConfig) -> None:
        size = c.hidden_size
        self.norm = LayerNorm(ctx, size, leaf="input_layernorm", eps=EPS)
        self.attend = Llama4VisionAttention(ctx, c)
        self.mlp_norm = LayerNorm(ctx, size, leaf="post_attention_layernorm", eps=EPS)
        self.mlp = PlainMLP(ctx, (size, c.intermediate_size, size), GELU, ("fc1", "fc2"))

    def forward(
        self, x_ND: Tensor, sum_ND: Tensor | None, angles_NE: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output and the residual stream it is to be added to. [N, D] each"""
        x_ND, total_ND = self.norm(x_ND, sum_ND)
        x_ND = self.attend(x_ND, angles_NE, lengths)
        x_ND, total_ND = self.mlp_norm(x_ND, total_ND)
        return self.mlp(x_ND), total_ND


class Llama4VisionLayers(Module):
    alias = "model"

    def __init__(self, ctx: Context, c: Llama4VisionConfig) -> None:
        self.layers = [Llama4VisionLayer(ctx, c) for _ in range(c.num_hidden_layers)]


class Llama4Adapter(Module):
    """Patches of a square joined and projected, with an activation behind each product."""

    alias = "vision_adapter.mlp"

    def __init__(self, ctx: Context, c: Llama4VisionConfig, merge: int) -> None:
        self._joined = c.hidden_size * merge**2
        sizes = (self._joined, c.projector_input_dim, c.projector_output_dim)
        self.mlp = PlainMLP(ctx, sizes, GELU, ("fc1", "fc2"), has_bias=False)
        spec = ctx.spec(features=GELU.features, size=c.projector_output_dim)
        self._activate = ctx.ops.resolve(activate, spec)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield both products, which have no name of their own."""
        yield from self.mlp.children()

    def forward(self, x_ND: Tensor) -> Tensor:
        return self._activate(self.mlp(x_ND.view(-1, self._joined)), activation=GELU)


class Llama4Encoder(Module):
    """Patches of tiles to features of squares of them."""

    def __init__(self, ctx: Context, c: Llama4VisionConfig, merge: int) -> None:
        size, side = c.hidden_size, c.side
        self.patches = Linear(ctx, c.patch_bytes, {"patch_embedding.linear": size})
        self.whole = LearnedRow(ctx, size, leaf="class_embedding")
        self.positions = FlatTable(ctx, side**2 + 1, size, leaf="positional_embedding_vlm")
        self.first_norm = LayerNorm(ctx, size, leaf="layernorm_pre", eps=EPS)
        self.layers = Llama4VisionLayers(ctx, c)
        self.last_norm = LayerNorm(ctx, size, leaf="layernorm_post", eps=EPS)
        self.adapter = Llama4Adapter(ctx, c, merge)
        # Rows and columns are counted from 1; what stands for all of a tile is not rotated.
        self._rotary = EncoderRotary(ctx, c.head_dim, c.theta, side + 1)
        self._merge, self._side, self._dtype = merge, side, ctx.dtype
        spec = ctx.spec(size=size)
        self._pixels = ctx.ops.resolve(pixel_values, ctx.spec())
        self._put = ctx.ops.resolve(put_before_runs, spec)
        self._leave_out = ctx.ops.resolve(leave_out_first, spec)
        self._add = ctx.ops.resolve(add_features, spec)

    def forward(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
    ) -> Tensor:
        """Return what is projected; see :class:`headstock.graph.vision.MediaModel`."""
        x_ND = self.patches(self._pixels(pixels_NP, scale_C, shift_C, dtype=self._dtype))
        places = [place_patches(grid, self._merge) for grid in grids]
        lengths = [place.shape[1] for place in places]
        x_ND = self._put(x_ND, self.whole.values_D, lengths=lengths)
        rows_N1, turns_2N = self._layout(places)
        x_ND = self.positions(x_ND, send(rows_N1), send(np.ones(rows_N1.shape, np.float32)))
        x_ND, sum_ND = self.first_norm(x_ND, None)[0], None
        angles_NE, runs = self._rotary(send(turns_2N)), [1 + length for length in lengths]
        for layer in self.layers.layers:
            x_ND, sum_ND = layer(x_ND, sum_ND, angles_NE, runs)
        x_ND = self.last_norm(x_ND, sum_ND)[0]
        return self.adapter(self._leave_out(x_ND, lengths=runs))

    def _layout(self, places: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return rows of the table of positions, and columns and rows to rotate by.

        What stands for all of a tile comes first here, and last in the table.
        """
        rows = [np.append(self._side**2, y * self._side + x) for y, x in places]
        turns = [np.pad(place[::-1] + 1, ((0, 0), (1, 0))) for place in places]
        return (
            np.concatenate(rows).astype(np.int64)[:, None],
            np.concatenate(turns, axis=1).astype(np.int32),
        )


class Llama4Projector(Module):
    def __init__(self, ctx: Context, size: int, out: int) -> None:
        self.layer = Linear(ctx, size, {"linear_1": out})

    def forward(self, x_MD: Tensor) -> Tensor:
        return self.layer(x_MD)


class Llama4ForConditionalGeneration(Model):
    """A decoder with an encoder of tiles."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text, vision = section(config, "text_config"), config.get("vision_config") or {}
        require(vision, hidden_act=("gelu",), pixel_shuffle_ratio=(0.5,))
        require(vision, vision_feature_select_strategy=("default",))
        require(vision, multi_modal_projector_bias=(False,))
        c = read_config(Llama4VisionConfig, vision)
        decoder = Llama4ForCausalLM(ctx, text)
        assert isinstance(decoder.model, Decoder), f"{decoder.model} is not a decoder of text"
        whole, merge, size = encoder_context(ctx), 2, int(text["hidden_size"])
        tower = Llama4Encoder(whole, c, merge)
        projector = Llama4Projector(whole, c.vision_output_dim, size)
        self.model = ImageTextModel(tower, projector, ImageDecoder(ctx, decoder.model, size))
        self.lm_head = decoder.lm_head
        self.media = PlainMedia(
            self.model.encode,
            feature_size=size,
            merge=merge,
            patch_bytes=c.patch_bytes,
            max_side=c.side,
        )

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by the names of leaves, with a matrix for each expert."""
        named: dict[str, StoredTensor] = {}
        for name, tensor in index.items():
            old, new = next(((o, n) for o, n in NAMES if name.startswith(o)), ("", ""))
            named[new + name.removeprefix(old)] = tensor
        return split_stacked(named, STACKS)
