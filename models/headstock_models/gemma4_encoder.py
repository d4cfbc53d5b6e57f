"""Gemma 4's encoder of images of any aspect.

Layers are as the decoder's, norms of queries, keys and values among them. Half of a head is turned
by a patch's column, half by its row. Squares of patches become one token.

Shapes: N patches, P values of a patch, H heads, E size of a head, D hidden size, M tokens of
images. Source: ``Gemma4VisionModel`` of Hugging Face transformers; names as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.graph.arranged import ArrangedLinear, Rows, features
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Layer, Leaf, Module
from headstock.graph.norm import RMSNorm
from headstock.graph.source import Source
from headstock.graph.vision import EncoderRotary, Grid, Send, place_patches
from headstock.ops.activation import activate_and_mul
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.features import add_features, bound_features, scale_features, weigh_and_shift
from headstock.ops.linear import CanonicalWeight
from headstock.ops.norm import rms_norm
from headstock.ops.outputs import join_features
from headstock.ops.vision import add_resampled, encoder_attention, mean_of_patches, pixel_values
from headstock.quantization.plan import Layout, Role

CHANNELS = 3
QUARTERS = (0, 2, 1, 3)
"""A head's quarters as they are turned in halves: columns' and rows' first ones, then second."""


class Gemma4VisionConfig(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    num_key_value_heads: int = 12
    head_dim: int = 64
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    patch_size: int = 16
    pooling_kernel_size: int = 3
    position_embedding_size: int = 10 * 1024
    use_clipped_linears: bool = False
    standardize: bool = False
    rope_parameters: dict[str, Any] | None = None

    @property
    def patch_bytes(self) -> int:
        """P."""
        return CHANNELS * self.patch_size**2

    @property
    def theta(self) -> float:
        """Base of the frequencies."""
        return float((self.rope_parameters or {}).get("rope_theta") or 100.0)

    def make_norm(self, ctx: Context, leaf: str) -> RMSNorm:
        return RMSNorm(ctx, self.hidden_size, leaf=leaf, eps=self.rms_norm_eps)


class Bounds(Layer):
    """Keeps features between two learned numbers."""

    def __init__(self, ctx: Context, leaf: str) -> None:
        self._names = f"{leaf}_min", f"{leaf}_max"
        where = ctx.device.torch_device
        self._values_2 = torch.tensor([-torch.inf, torch.inf], dtype=ctx.dtype, device=where)
        self._bound = ctx.ops.resolve(bound_features, ctx.spec())

    def forward(self, x_TA: Tensor) -> Tensor:
        return self._bound(x_TA, self._values_2)

    def leaves(self) -> Sequence[Leaf]:
        """Return both numbers."""
        return [Leaf(name, (), Role.SCALE) for name in self._names]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: they are made at once."""

    def load(self, name: str, source: Source) -> None:
        """Take one of them."""
        self._values_2[self._names.index(name)] = source.read(0, 1)["weight"].reshape(())

    @property
    def num_bytes(self) -> int:
        """Bytes of both."""
        return self._values_2.nbytes


class BoundedLinear(Module):
    """A product whose inputs and outputs are bounded, where the configuration says so."""

    def __init__(
        self, ctx: Context, c: Gemma4VisionConfig, sizes: tuple[int, int], rows: Sequence[Rows] = ()
    ) -> None:
        inputs, outputs = sizes
        self.product = ArrangedLinear(ctx, inputs, {"linear": rows or [features(outputs)]})
        self.inputs = Bounds(ctx, "input") if c.use_clipped_linears else None
        self.outputs = Bounds(ctx, "output") if c.use_clipped_linears else None

    def forward(self, x_NA: Tensor) -> Tensor:
        if self.inputs is None or self.outputs is None:
            return self.product(x_NA)
        return self.outputs(self.product(self.inputs(x_NA)))


class HeadNorm(RMSNorm):
    """A norm of heads whose quarters are in the order of :data:`QUARTERS`, times ``factor``."""

    def __init__(self, ctx: Context, size: int, *, leaf: str, eps: float, factor: float) -> None:
        super().__init__(ctx, size, leaf=leaf, eps=eps)
        self._factor = factor

    def load(self, name: str, source: Source) -> None:
        """Take the weight."""
        super().load(name, source)
        quarters = self._weight_D.unflatten(0, (4, -1))[list(QUARTERS)]
        self._weight_D.copy_(quarters.flatten() * self._factor)


class Gemma4VisionAttention(Module):
    """W_o attend(rotate(norm(W_q x)), rotate(norm(W_k x)), v / rms(v)) among an image's patches."""

    def __init__(self, ctx: Context, c: Gemma4VisionConfig) -> None:
        heads, size, width = c.num_attention_heads, c.head_dim, c.num_attention_heads * c.head_dim
        sizes, part = (c.hidden_size, width), c.head_dim // 4
        order = [
            Rows(first=head * size + quarter * part, size=part, stride=part, num_heads=1)
            for head in range(heads)
            for quarter in QUARTERS
        ]
        self.q_proj = BoundedLinear(ctx, c, sizes, order)
        self.k_proj = BoundedLinear(ctx, c, sizes, order)
        self.v_proj = BoundedLinear(ctx, c, sizes)
        self.o_proj = BoundedLinear(ctx, c, (width, c.hidden_size))
        # Attention divides q·k by sqrt(E), which the model does not.
        eps, factor = c.rms_norm_eps, size**0.5
        self.q_norm = HeadNorm(ctx, size, leaf="q_norm", eps=eps, factor=factor)
        self.k_norm = HeadNorm(ctx, size, leaf="k_norm", eps=eps, factor=1.0)
        self._ones_E = torch.ones(size, dtype=ctx.dtype, device=ctx.device.torch_device)
        self._norm = partial(ctx.ops.resolve(rms_norm, ctx.spec(size=size)), eps=eps)
        self._join = ctx.ops.resolve(join_features, ctx.spec())
        spec = ctx.spec(num_heads=heads, head_dim=size)
        self._attend = partial(ctx.ops.resolve(encoder_attention, spec), num_heads=heads)
        self._heads = (heads, size)

    def forward(self, x_ND: Tensor, angles_NE: Tensor, lengths: Sequence[int]) -> Tensor:
        q_NHE, k_NHE, v_NHE = (
            proj(x_ND).unflatten(1, self._heads) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_NHE, k_NHE = self.q_norm(q_NHE, None)[0], self.k_norm(k_NHE, None)[0]
        v_NHE = self._norm(v_NHE, self._ones_E)
        qk_NC = self._join(q_NHE.flatten(1), k_NHE.flatten(1))
        qkv_NC = self._join(qk_NC, v_NHE.flatten(1))
        return self.o_proj(self._attend(qkv_NC, angles_NE, lengths=lengths))


class Gemma4VisionMLP(Module):
    """W_down (activation(W_gate x) * (W_up x)), each product perhaps bounded."""

    def __init__(self, ctx: Context, c: Gemma4VisionConfig) -> None:
        sizes = (c.hidden_size, c.intermediate_size)
        self.gate_proj = BoundedLinear(ctx, c, sizes)
        self.up_proj = BoundedLinear(ctx, c, sizes)
        self.down_proj = BoundedLinear(ctx, c, (c.intermediate_size, c.hidden_size))
        activation = BY_CONFIG_NAME[c.hidden_activation]
        spec = ctx.spec(features=activation.features, size=c.intermediate_size)
        self._join = partial(ctx.ops.resolve(activate_and_mul, spec), activation=activation)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.down_proj(self._join(self.gate_proj(x_ND), self.up_proj(x_ND)))


class Gemma4VisionLayer(Module):
    """Attention, then the feed-forward layer, each between two norms."""

    def __init__(self, ctx: Context, c: Gemma4VisionConfig) -> None:
        self.norm = c.make_norm(ctx, "input_layernorm")
        self.self_attn = Gemma4VisionAttention(ctx, c)
        self.attn_norm = c.make_norm(ctx, "post_attention_layernorm")
        self.mlp_norm = c.make_norm(ctx, "pre_feedforward_layernorm")
        self.mlp = Gemma4VisionMLP(ctx, c)
        self.out_norm = c.make_norm(ctx, "post_feedforward_layernorm")

    def forward(
        self, x_ND: Tensor, sum_ND: Tensor | None, angles_NE: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        x_ND, total_ND = self.norm(x_ND, sum_ND)
        x_ND, _ = self.attn_norm(self.self_attn(x_ND, angles_NE, lengths), None)
        x_ND, total_ND = self.mlp_norm(x_ND, total_ND)
        x_ND, _ = self.out_norm(self.mlp(x_ND), None)
        return x_ND, total_ND


class Gemma4VisionLayers(Module):
    def __init__(self, ctx: Context, c: Gemma4VisionConfig) -> None:
        self.layers = [Gemma4VisionLayer(ctx, c) for _ in range(c.num_hidden_layers)]
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def forward(self, x_ND: Tensor, angles_NE: Tensor, lengths: Sequence[int]) -> Tensor:
        sum_ND = None
        for layer in self.layers:
            x_ND, sum_ND = layer(x_ND, sum_ND, angles_NE, lengths)
        return x_ND if sum_ND is None else self._add(x_ND, sum_ND)


class ChannelsLast(Linear):
    """A product with patches whose values of one place lie together in the checkpoint."""

    def __init__(self, ctx: Context, c: Gemma4VisionConfig, *, leaf: str) -> None:
        super().__init__(ctx, c.patch_bytes, {leaf: c.hidden_size})

    def load(self, name: str, source: Source) -> None:
        """Take the matrix."""
        super().load(name, _ByChannel(source))


class _ByChannel:
    """A matrix whose columns are put in the order of channels."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.layout: Layout = source.layout
        self.shape = source.shape

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end)."""
        found = self._source.read(begin, end)["weight"]
        return {"weight": found.unflatten(1, (-1, CHANNELS)).transpose(1, 2).flatten(1)}


class PlaceTable(Layer):
    """Learned positions of columns and of rows, which are added to patches."""

    def __init__(self, ctx: Context, num_places: int, size: int, *, leaf: str) -> None:
        self._leaf, self._num_places = leaf, num_places
        shape, where = (2 * num_places, size), ctx.device.torch_device
        self._values_LD = torch.zeros(shape, dtype=ctx.dtype, device=where)
        self._add = ctx.ops.resolve(add_resampled, ctx.spec(size=size))

    def forward(self, x_ND: Tensor, places_2N: np.ndarray, send: Send) -> Tensor:
        """Add those of columns and rows (in this order). [N, D]"""
        rows_N2 = (places_2N + np.array([[0], [self._num_places]])).T.astype(np.int64)
        weights_N2 = np.ones(rows_N2.shape, np.float32)
        return self._add(x_ND, self._values_LD, send(rows_N2), send(weights_N2))

    def leaves(self) -> Sequence[Leaf]:
        """Return the table."""
        size = self._values_LD.shape[1]
        return [Leaf(self._leaf, (2, self._num_places, size), Role.BIAS)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the table is small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy the table."""
        self._values_LD.copy_(source.read(0, 2)["weight"].flatten(0, 1))

    @property
    def num_bytes(self) -> int:
        """Bytes of the table."""
        return self._values_LD.nbytes


class Gemma4Patches(Module):
    def __init__(self, ctx: Context, c: Gemma4VisionConfig) -> None:
        self.product = ChannelsLast(ctx, c, leaf="input_proj")
        sizes = (c.position_embedding_size, c.hidden_size)
        self.places = PlaceTable(ctx, *sizes, leaf="position_embedding_table")

    def forward(self, values_NP: Tensor, places_2N: np.ndarray, send: Send) -> Tensor:
        return self.places(self.product(values_NP), places_2N, send)


class Standard(Layer):
    """(sqrt(D) · x - bias) · scale: what the encoder makes, in a usual range."""

    def __init__(self, ctx: Context, size: int) -> None:
        where = ctx.device.torch_device
        self._values = {n: torch.zeros(size, device=where) for n in ("std_bias", "std_scale")}
        self._weight_D, self._shift_D = (torch.zeros(size, device=where) for _ in range(2))
        self._shift = ctx.ops.resolve(weigh_and_shift, ctx.spec())

    def forward(self, x_MD: Tensor) -> Tensor:
        return self._shift(x_MD, self._weight_D, self._shift_D)

    def leaves(self) -> Sequence[Leaf]:
        """Return both vectors."""
        return [Leaf(name, tuple(x.shape), Role.BIAS) for name, x in self._values.items()]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: they are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Take one of them."""
        self._values[name].copy_(source.read(0, source.shape[0])["weight"])
        bias_D, scale_D = self._values.values()
        self._weight_D.copy_(scale_D * len(scale_D) ** 0.5)
        self._shift_D.copy_(-bias_D * scale_D)

    @property
    def num_bytes(self) -> int:
        """Bytes of both, and of what is made of them."""
        return 4 * self._weight_D.nbytes


class Gemma4Encoder(Module):
    """Patches to hidden states of tokens: the means of squares."""

    def __init__(self, ctx: Context, c: Gemma4VisionConfig) -> None:
        size, self._merge, self._dtype = c.hidden_size, c.pooling_kernel_size, ctx.dtype
        self.patch_embedder = Gemma4Patches(ctx, c)
        self.encoder = Gemma4VisionLayers(ctx, c)
        self.standard = Standard(ctx, size) if c.standardize else None
        self._rotary = EncoderRotary(ctx, c.head_dim, c.theta, c.position_embedding_size)
        mean = ctx.ops.resolve(mean_of_patches, ctx.spec(size=size))
        self._mean = partial(mean, count=self._merge**2)
        self._grow = partial(ctx.ops.resolve(scale_features, ctx.spec()), factor=size**0.5)
        self._pixels = ctx.ops.resolve(pixel_values, ctx.spec())

    def forward(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
    ) -> Tensor:
        """Return the hidden states of tokens; see :class:`headstock.graph.vision.MediaModel`."""
        values_NP = self._pixels(pixels_NP, scale_C, shift_C, dtype=self._dtype)
        places = np.concatenate([place_patches(grid, self._merge) for grid in grids], axis=1)
        places_2N = np.ascontiguousarray(places[::-1])  # columns come first
        x_ND = self.patch_embedder(values_NP, places_2N, send)
        angles_NE = self._rotary(send(places_2N.astype(np.int32)))
        lengths = [h * w for t, h, w in grids for _ in range(t)]
        x_MD = self._mean(self.encoder(x_ND, angles_NE, lengths))
        return self._grow(x_MD) if self.standard is None else self.standard(x_MD)


def read_vision(config: Mapping[str, Any] | None) -> Gemma4VisionConfig:
    """Return the configuration of an encoder.

    Raises:
        UnsupportedError: It asks for what is not computed, or there is none.
    """
    if config is None:
        raise UnsupportedError(
            "The model's configuration has vision_config = None: it has no encoder of images.",
            remedy="Serve the decoder by itself, as Gemma4ForCausalLM.",
        )
    require(config, hidden_activation=BY_CONFIG_NAME, attention_bias=(False,))
    rope = config.get("rope_parameters") or {}
    require(rope, rope_type=("axial", "default"))
    c = read_config(Gemma4VisionConfig, config)
    if c.num_key_value_heads != c.num_attention_heads or c.head_dim % 4:
        raise UnsupportedError(
            f"The image encoder has num_key_value_heads = {c.num_key_value_heads} of"
            f" {c.num_attention_heads} heads with head_dim = {c.head_dim}; as many, of a multiple"
            " of 4 features, are computed.",
            remedy="Serve another model.",
        )
    return c
