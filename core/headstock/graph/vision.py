"""Layers of image encoders: transformers over patches, all of an image at once.

An encoder is whole on each rank: it is small beside the decoder, and its heads seldom divide.

Shapes: N patches, P values of a patch, D features, L places of the position table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Layer, Leaf, Module
from headstock.graph.norm import LayerNorm
from headstock.graph.source import Source
from headstock.ops.activation import activate
from headstock.ops.activation_kinds import BY_CONFIG_NAME, SILU, Activation
from headstock.ops.base import Spec
from headstock.ops.communication import SingleRank
from headstock.ops.features import scale_features
from headstock.ops.linear import CanonicalWeight
from headstock.ops.media import axis_angles
from headstock.ops.vision import add_resampled, encoder_attention
from headstock.quantization.plan import Layout, Role

Grid = tuple[int, int, int]
"""Patches of an image or a video in time, height and width."""


Send = Callable[[np.ndarray], Tensor]
"""Copies an array to the device."""


Moment = tuple[int, bool]
"""Where a moment of a video is on the axis of time, in positions from the first one, and whether
it is of the same video as the one before it. An image is at 0, and of none."""


class View(Protocol):
    """What the tokens of an image show of its patches, row by row.

    Attributes:
        rows: Of patches, from the middle of the grid.
        columns: Likewise.
        tall: Rows of tokens that these are resampled to.
        wide: Tokens of a row.
        marks: Tokens beside these that are the same in every image: one after each row, one
            after the last, or none.
    """

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def tall(self) -> int: ...
    @property
    def wide(self) -> int: ...
    @property
    def marks(self) -> int: ...


class MediaModel(Protocol):
    """What the runner calls of a model that takes images.

    Attributes:
        num_axes: A: axes of a position.
        feature_size: F: features that a token of an image has.
        patches_per_token: Patches that become one token.
        patch_bytes: P.
        max_side: Most patches in height or width.
        sees_spans: Whether tokens of an image see all of it: then none is computed without the
            others, and steps say where they are (:class:`headstock.ops.attention.StepSpan`).
        row_tokens: Tokens after each row of an image's, which have embeddings like those of text.
        tile_side: Patches in height and width of the squares that the encoder takes, one after
            another; 0: it takes an image as it is, and images have no views.
        pooled_frames: Most frames of an item, which become as many tokens as one of them; 1:
            tokens of all frames stand one after another.
    """

    num_axes: int
    feature_size: int
    patches_per_token: int
    patch_bytes: int
    max_side: int
    sees_spans: bool
    row_tokens: int
    tile_side: int
    pooled_frames: int

    def encode(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
        views: Sequence[View | None] = (),
    ) -> Tensor:
        """Return the features of the tokens of images or videos, one after another. [tokens, F]

        Args:
            pixels_NP: uint8, of all of them. [N, P]
            grids: Their patches.
            scale_C: Multiplies the pixels of each channel. float32. [C]
            shift_C: Added to them then. float32. [C]
            send: Brings what follows from the grids to the device, without waiting.
            views: What tokens show of each grid; None, or none given: all of it.
        """
        ...

    def shifts(
        self, begins: Sequence[int], grids: Sequence[Grid], moments: Sequence[Moment] = ()
    ) -> tuple[np.ndarray, int]:
        """Return how far tokens' positions are from their places in the prompt.

        Args:
            begins: Place of the first token of each image or moment, in order.
            grids: Their patches.
            moments: What they are; none given: images.

        Returns:
            Of each token up to the last one's end, int32 [A, tokens]; of all after them.
        """
        ...


def place_patches(grid: Grid, merge: int) -> np.ndarray:
    """Return rows and columns of patches in the order in which squares of them come. [2, N]"""
    frames, height, width = grid
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    squares = (height // merge, merge, width // merge, merge)
    both = [
        np.tile(of.reshape(squares).transpose(0, 2, 1, 3).reshape(-1), frames)
        for of in (rows, columns)
    ]
    return np.stack(both)


def encoder_context(ctx: Context) -> Context:
    """Return what an encoder's layers are built with: whole on each rank, as dense as they come.

    They take no adapters: features are kept by what an image shows, whoever asks about it.
    """
    return replace(ctx, tp=SingleRank(), quantization=None, adapters=None)


class PatchEmbedding(Linear):
    """A convolution whose steps are as wide as its kernel: a matrix product of each patch.

    Args:
        ctx: What to build with.
        shape: Of the kernel: channels, then its extents.
        size: D.
        leaf: Checkpoint name.
        has_bias: Whether it has a bias.
    """

    def __init__(
        self,
        ctx: Context,
        shape: tuple[int, ...],
        size: int,
        *,
        leaf: str,
        has_bias: bool = True,
    ) -> None:
        self._shape = shape
        super().__init__(ctx, int(np.prod(shape)), {leaf: size}, has_bias=has_bias)

    def leaves(self) -> Sequence[Leaf]:
        """Return the kernel, and the bias if there is one."""
        kernel, *bias = super().leaves()
        return [replace(kernel, shape=(kernel.shape[0], *self._shape)), *bias]

    def load(self, name: str, source: Source) -> None:
        """Take the kernel as a matrix, or the bias."""
        super().load(name, source if name.endswith("bias") else _Flat(source))


class _Flat:
    """A tensor of which each row is flattened."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.layout: Layout = source.layout
        self.shape = (source.shape[0], int(np.prod(source.shape[1:])))

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end)."""
        return {name: part.flatten(1) for name, part in self._source.read(begin, end).items()}


class PositionTable(Layer):
    """Learned positions of a square grid, resampled to the grid at hand.

    Args:
        ctx: What to build with.
        num_places: L, a square.
        size: D.
        leaf: Checkpoint name.
    """

    def __init__(self, ctx: Context, num_places: int, size: int, *, leaf: str) -> None:
        self._leaf = leaf
        self.side = round(num_places**0.5)
        self.values_LD = torch.empty(
            (num_places, size), dtype=ctx.dtype, device=ctx.device.torch_device
        )
        self._add = ctx.ops.resolve(add_resampled, ctx.spec(size=size))

    def forward(self, x_ND: Tensor, rows_NB: Tensor, weights_NB: Tensor) -> Tensor:
        """Add the positions; see :func:`headstock.ops.vision.add_resampled`. [N, D]"""
        return self._add(x_ND, self.values_LD, rows_NB, weights_NB)

    def leaves(self) -> Sequence[Leaf]:
        """Return the table."""
        return [Leaf(f"{self._leaf}.weight", tuple(self.values_LD.shape), Role.BIAS)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the table is small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy the table."""
        self.values_LD.copy_(source.read(0, source.shape[0])["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the table."""
        return self.values_LD.nbytes


class EncoderRotary(Module):
    """Angles by height and width, each axis half of them.

    Args:
        ctx: What to build with.
        head_dim: Of the encoder's heads.
        theta: Base of the frequencies.
        max_side: Most patches in height or width.
        takes_turns: Whether the frequencies of a whole head are the axes' by turns; otherwise both
            have the same ones.
    """

    def __init__(
        self,
        ctx: Context,
        head_dim: int,
        theta: float,
        max_side: int,
        *,
        takes_turns: bool = False,
    ) -> None:
        size = head_dim if takes_turns else head_dim // 2
        frequencies_F = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
        tall_F = frequencies_F[0::2] if takes_turns else frequencies_F
        wide_F = frequencies_F[1::2] if takes_turns else frequencies_F
        both_F = torch.cat((tall_F, wide_F))
        both_LF = torch.arange(max_side, dtype=torch.float32)[:, None] * both_F
        table_LC = torch.cat((both_LF.cos(), both_LF.sin()), dim=1)
        count = tall_F.shape[0]
        where = ctx.device.torch_device
        self._table_LC = table_LC.to(where)
        self._axis_F = torch.tensor([0] * count + [1] * count, device=where)
        self._look_up = ctx.ops.resolve(axis_angles, Spec(dtype="float32"))

    def forward(self, places_2N: Tensor) -> Tensor:
        """Return cosines and sines of patches in rows and columns (int32). [N, head_dim]"""
        return self._look_up(self._table_LC, places_2N, self._axis_F, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderNames:
    """What a checkpoint calls the parts of an encoder's layer.

    Attributes:
        norms: Before attention, and before the feed-forward layer.
        attention: Above the next two.
        qkv: Of queries, keys and values: one matrix or three.
        out: Of attention's output.
        mlp: Both matrices of the feed-forward layer.
    """

    norms: tuple[str, str] = ("norm1", "norm2")
    attention: str = "attn"
    qkv: tuple[str, ...] = ("qkv",)
    out: str = "proj"
    mlp: tuple[str, str] = ("linear_fc1", "linear_fc2")


JOINED = EncoderNames()
"""Names where one matrix makes queries, keys and values."""
APART = EncoderNames(
    norms=("layer_norm1", "layer_norm2"),
    attention="self_attn",
    qkv=("q_proj", "k_proj", "v_proj"),
    out="out_proj",
    mlp=("fc1", "fc2"),
)
"""Those of CLIP and SigLIP."""


class EncoderAttention(Module):
    """W_o attend(rotate(W_q x), rotate(W_k x), W_v x) among the patches of a run.

    Args:
        ctx: What to build with.
        size: D.
        num_heads: Heads.
        names: Checkpoint names.
        has_bias: Whether the projections have biases.
    """

    def __init__(
        self,
        ctx: Context,
        size: int,
        num_heads: int,
        names: EncoderNames,
        *,
        has_bias: bool = True,
    ) -> None:
        self.alias = names.attention
        each = 3 * size // len(names.qkv)
        self.qkv = Linear(ctx, size, dict.fromkeys(names.qkv, each), has_bias=has_bias)
        self.out = Linear(ctx, size, {names.out: size}, has_bias=has_bias)
        self._num_heads = num_heads
        spec = ctx.spec(num_heads=num_heads, head_dim=size // num_heads)
        self._attend = ctx.ops.resolve(encoder_attention, spec)

    def forward(self, x_ND: Tensor, angles_NE: Tensor | None, lengths: Sequence[int]) -> Tensor:
        """Return the layer's output. [N, D]"""
        qkv_NC = self.qkv(x_ND)
        out_ND = self._attend(qkv_NC, angles_NE, lengths=lengths, num_heads=self._num_heads)
        return self.out(out_ND)


QUICK_GELU = "quick_gelu"
"""What configurations call SiLU of 1.702 times its argument, divided by 1.702."""
ENCODER_ACTIVATIONS: Mapping[str, tuple[Activation, float]] = {
    **{name: (activation, 1.0) for name, activation in BY_CONFIG_NAME.items()},
    QUICK_GELU: (SILU, 1.702),
}
"""Activations and factors of :class:`PlainMLP` by what configurations call them."""


class PlainMLP(Module):
    """W_2 activation(W_1 x + b_1) + b_2.

    Args:
        ctx: What to build with.
        sizes: Features in, between and out.
        activation: Between.
        leaves: Checkpoint names of both matrices.
        factor: Multiplies the activation's argument, and divides its result.
        has_bias: Whether both matrices have biases.
    """

    def __init__(
        self,
        ctx: Context,
        sizes: tuple[int, int, int],
        activation: Activation,
        leaves: tuple[str, str],
        factor: float = 1.0,
        *,
        has_bias: bool = True,
    ) -> None:
        inputs, between, outputs = sizes
        self.up = Linear(ctx, inputs, {leaves[0]: between}, has_bias=has_bias)
        self.down = Linear(ctx, between, {leaves[1]: outputs}, has_bias=has_bias)
        self._activation = activation
        spec = ctx.spec(features=activation.features, size=between)
        self._activate = ctx.ops.resolve(activate, spec)
        self._factor = factor
        self._scale = ctx.ops.resolve(scale_features, ctx.spec())

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return the layer's output. [N, D]"""
        x_NB = self.up(x_ND)
        if self._factor == 1:
            return self.down(self._activate(x_NB, activation=self._activation))
        x_NB = self._activate(self._scale(x_NB, factor=self._factor), activation=self._activation)
        return self.down(self._scale(x_NB, factor=1 / self._factor))


class EncoderLayer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream.

    Args:
        ctx: What to build with.
        size: D.
        num_heads: Heads.
        intermediate_size: Features between.
        activation: Of the feed-forward layer.
        eps: Of the norms.
        names: Checkpoint names.
        factor: As in :class:`PlainMLP`.
    """

    def __init__(
        self,
        ctx: Context,
        size: int,
        num_heads: int,
        intermediate_size: int,
        activation: Activation,
        *,
        eps: float,
        names: EncoderNames = JOINED,
        factor: float = 1.0,
    ) -> None:
        self.norm = LayerNorm(ctx, size, leaf=names.norms[0], eps=eps)
        self.attn = EncoderAttention(ctx, size, num_heads, names)
        self.mlp_norm = LayerNorm(ctx, size, leaf=names.norms[1], eps=eps)
        sizes = (size, intermediate_size, size)
        self.mlp = PlainMLP(ctx, sizes, activation, names.mlp, factor)

    def forward(
        self,
        x_ND: Tensor,
        sum_ND: Tensor | None,
        angles_NE: Tensor | None,
        lengths: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output and the residual stream it is to be added to. [N, D] each"""
        x_ND, total_ND = self.norm(x_ND, sum_ND)
        x_ND = self.attn(x_ND, angles_NE, lengths)
        x_ND, total_ND = self.mlp_norm(x_ND, total_ND)
        return self.mlp(x_ND), total_ND
