"""InternVL 3 and 3.5: an encoder of tiles with a row for all of each, squares of it, a decoder.

Shapes: N patches, M = N / merge² tokens of images, D hidden size of the encoder, F the decoder's.
Source: Zhu et al. 2025, "InternVL3"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.errors import UnsupportedError
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require, section
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Leaf, Module
from headstock.graph.norm import LayerNorm, RMSNorm
from headstock.graph.source import Source
from headstock.graph.vision import (
    Grid,
    PatchEmbedding,
    PlainMLP,
    PositionTable,
    Send,
    encoder_context,
    place_patches,
)
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.features import add_features, weigh_features
from headstock.ops.outputs import join_features
from headstock.ops.vision import encoder_attention, leave_out_first, pixel_values, put_before_runs
from headstock_models.image_text import (
    ImageDecoder,
    ImageTextModel,
    LearnedRow,
    PlainMedia,
    image_text_names,
)
from headstock_models.llama import Decoder, LlamaForCausalLM
from headstock_models.llava import TEXT as LLAVA_TEXT
from headstock_models.qwen3 import Qwen3ForCausalLM

TEXT: Mapping[str, type[LlamaForCausalLM]] = {**LLAVA_TEXT, "qwen3": Qwen3ForCausalLM}
"""Decoders by the ``model_type`` of their configuration."""
NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}
PROJECTOR_EPS = 1e-5
QK_EPS = 1e-6
ENCODER = "internvl_vision"


class InternVLVisionConfig(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int | tuple[int, int] = 448
    patch_size: int | tuple[int, int] = 14
    attention_bias: bool = False
    use_qk_norm: bool = False
    hidden_act: str = "gelu"
    norm_type: str = "layer_norm"
    layer_norm_eps: float = 1e-6
    use_mean_pooling: bool = True

    @property
    def patch(self) -> int:
        """Pixels of a patch in height and width."""
        return square_side(self.patch_size, "patch_size")

    @property
    def side(self) -> int:
        """Patches of a tile in height and width."""
        return square_side(self.image_size, "image_size") // self.patch

    def make_norm(self, ctx: Context, leaf: str) -> LayerNorm | RMSNorm:
        """Return one of the encoder's norms."""
        return NORMS[self.norm_type](ctx, self.hidden_size, leaf=leaf, eps=self.layer_norm_eps)


def square_side(given: int | Sequence[int], key: str) -> int:
    """Return a side of a square that is given by one side or both.

    Raises:
        UnsupportedError: It is no square.
    """
    sides = {given} if isinstance(given, int) else set(given)
    if len(sides) != 1:
        raise UnsupportedError(
            f"The encoder's {key} is {given}, which is not a square.", remedy="Serve another model."
        )
    return sides.pop()


class WholeTable(PositionTable):
    """Positions of a grid and of the row before it; the checkpoint has them in one tensor."""

    def leaves(self) -> Sequence[Leaf]:
        (leaf,) = super().leaves()
        return [replace(leaf, name=self._leaf, shape=(1, *leaf.shape))]

    def load(self, name: str, source: Source) -> None:
        self.values_LD.copy_(source.read(0, 1)["weight"][0])


class InternVLEmbeddings(Module):
    """Patches to hidden states, a row before those of each tile, and positions added."""

    def __init__(self, ctx: Context, c: InternVLVisionConfig, merge: int) -> None:
        kernel, size = (c.num_channels, c.patch, c.patch), c.hidden_size
        self.patches = PatchEmbedding(ctx, kernel, size, leaf="patch_embeddings.projection")
        self.first = LearnedRow(ctx, size, leaf="cls_token", extents=2)
        self.positions = WholeTable(ctx, c.side**2 + 1, size, leaf="position_embeddings")
        self._side, self._merge = c.side, merge
        self._put = ctx.ops.resolve(put_before_runs, ctx.spec(size=size))

    def forward(self, values_NP: Tensor, grids: Sequence[Grid], send: Send) -> Tensor:
        places = [place_patches(grid, self._merge) for grid in grids]
        rows = [np.append(0, 1 + y * self._side + x).astype(np.int64) for y, x in places]
        rows_N1 = np.concatenate(rows)[:, None]
        lengths = [place.shape[1] for place in places]
        x_ND = self._put(self.patches(values_NP), self.first.values_D, lengths=lengths)
        return self.positions(x_ND, send(rows_N1), send(np.ones(rows_N1.shape, np.float32)))


class InternVLAttention(Module):
    """Attention among the rows of a tile; queries and keys may be normalised over all heads."""

    alias = "attention"

    def __init__(self, ctx: Context, c: InternVLVisionConfig) -> None:
        size, bias = c.hidden_size, c.attention_bias
        names = ("q_proj", "k_proj", "v_proj")
        groups = [(name,) for name in names] if c.use_qk_norm else [names]
        self.qkv = [Linear(ctx, size, dict.fromkeys(each, size), has_bias=bias) for each in groups]
        self.norms: list[RMSNorm] = []
        if c.use_qk_norm:
            self.norms = [
                RMSNorm(ctx, size, leaf=leaf, eps=QK_EPS) for leaf in ("q_norm", "k_norm")
            ]
        self.out = Linear(ctx, size, {"projection_layer": size}, has_bias=True)
        self._num_heads = c.num_attention_heads
        spec = ctx.spec(num_heads=c.num_attention_heads, head_dim=size // c.num_attention_heads)
        self._attend = ctx.ops.resolve(encoder_attention, spec)
        self._join = ctx.ops.resolve(join_features, ctx.spec())

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the parts; none has a name of its own."""
        for place, part in enumerate([*self.qkv, *self.norms, self.out]):
            yield f"part{place}", part

    def forward(self, x_ND: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the layer's output. [N, D]"""
        parts = [linear(x_ND) for linear in self.qkv]
        for place, norm in enumerate(self.norms):
            parts[place] = norm(parts[place], None)[0]
        qkv_NC = parts[0]
        for part in parts[1:]:
            qkv_NC = self._join(qkv_NC, part)
        return self.out(self._attend(qkv_NC, None, lengths=lengths, num_heads=self._num_heads))


class InternVLLayer(Module):
    """Attention, then the feed-forward layer; what each adds is weighed by feature."""

    def __init__(self, ctx: Context, c: InternVLVisionConfig) -> None:
        size = c.hidden_size
        self.norm = c.make_norm(ctx, "layernorm_before")
        self.attention = InternVLAttention(ctx, c)
        self.first = LearnedRow(ctx, size, leaf="lambda_1")
        self.mlp_norm = c.make_norm(ctx, "layernorm_after")
        sizes, activation = (size, c.intermediate_size, size), BY_CONFIG_NAME[c.hidden_act]
        self.mlp = PlainMLP(ctx, sizes, activation, ("fc1", "fc2"))
        self.second = LearnedRow(ctx, size, leaf="lambda_2")
        self._weigh = ctx.ops.resolve(weigh_features, ctx.spec(size=size))

    def forward(
        self, x_ND: Tensor, sum_ND: Tensor | None, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output and the residual stream it is to be added to. [N, D] each"""
        x_ND, total_ND = self.norm(x_ND, sum_ND)
        x_ND = self._weigh(self.attention(x_ND, lengths), self.first.values_D)
        x_ND, total_ND = self.mlp_norm(x_ND, total_ND)
        return self._weigh(self.mlp(x_ND), self.second.values_D), total_ND


class InternVLLayers(Module):
    def __init__(self, ctx: Context, c: InternVLVisionConfig, count: int) -> None:
        self.layer = [InternVLLayer(ctx, c) for _ in range(count)]


class InternVLEncoder(Module):
    """Patches to hidden states, those of a square together."""

    def __init__(self, ctx: Context, c: InternVLVisionConfig, *, merge: int) -> None:
        self.embeddings = InternVLEmbeddings(ctx, c, merge)
        self.encoder = InternVLLayers(ctx, c, c.num_hidden_layers)
        self.norm = None
        if not c.use_mean_pooling:
            eps = c.layer_norm_eps
            self.norm = LayerNorm(ctx, c.hidden_size, leaf="layernorm", eps=eps)
        self._dtype, spec = ctx.dtype, ctx.spec(size=c.hidden_size)
        self._pixels = ctx.ops.resolve(pixel_values, ctx.spec())
        self._add = ctx.ops.resolve(add_features, spec)
        self._leave_out = ctx.ops.resolve(leave_out_first, spec)

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
        x_ND, sum_ND = self.embeddings(values_NP, grids, send), None
        lengths = [1 + int(np.prod(grid)) for grid in grids]
        for layer in self.encoder.layer:
            x_ND, sum_ND = layer(x_ND, sum_ND, lengths)
        if self.norm is not None:
            x_ND = self.norm(x_ND, sum_ND)[0]
        elif sum_ND is not None:
            x_ND = self._add(x_ND, sum_ND)
        return self._leave_out(x_ND, lengths=lengths)


class InternVLProjector(Module):
    """Patches of a square joined, normalised and projected to the decoder's size."""

    def __init__(self, ctx: Context, joined: int, out: int, activation: str) -> None:
        self._joined = joined
        self.norm = LayerNorm(ctx, joined, leaf="layer_norm", eps=PROJECTOR_EPS)
        sizes, leaves = (joined, out, out), ("linear_1", "linear_2")
        self.mlp = PlainMLP(ctx, sizes, BY_CONFIG_NAME[activation], leaves)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the parts; those of the feed-forward layer have no name of their own."""
        yield "norm", self.norm
        yield from self.mlp.children()

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return features of tokens. [M, F]"""
        return self.mlp(self.norm(x_ND.view(-1, self._joined), None)[0])


class InternVLForConditionalGeneration(Model):
    """A decoder with InternViT's encoder of tiles."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = {"model_type": "qwen2", **section(config, "text_config")}
        text["tie_word_embeddings"] = is_tied(config, text)
        vision = config.get("vision_config") or {}
        require(text, model_type=TEXT)
        require(config, vision_feature_layer=(-1,), vision_feature_select_strategy=("default",))
        require(config, projector_hidden_act=BY_CONFIG_NAME, downsample_ratio=(0.5,))
        require(vision, model_type=(ENCODER,), hidden_act=BY_CONFIG_NAME, norm_type=NORMS)
        require(vision, use_absolute_position_embeddings=(True,), use_mask_token=(False,))
        c = read_config(InternVLVisionConfig, vision)
        decoder = TEXT[text["model_type"]](ctx, text)
        assert isinstance(decoder.model, Decoder), f"{decoder.model} is not a decoder of text"
        whole, merge, size = encoder_context(ctx), 2, int(text["hidden_size"])
        tower = InternVLEncoder(whole, c, merge=merge)
        activation = config.get("projector_hidden_act") or "gelu"
        projector = InternVLProjector(whole, c.hidden_size * merge**2, size, activation)
        self.model = ImageTextModel(tower, projector, ImageDecoder(ctx, decoder.model, size))
        self.lm_head = decoder.lm_head
        self.media = PlainMedia(
            self.model.encode,
            feature_size=size,
            merge=merge,
            patch_bytes=c.num_channels * c.patch**2,
            max_side=c.side,
        )

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names: the hub has older ones."""
        return image_text_names(index)


def is_tied(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Whether the output layer is the embedding: it is where neither configuration says."""
    return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", True)))
