"""MobileNet V5, Gemma 3n's encoder of images: convolutions, and attention among places.

Shapes: N places of all maps, C features, P bytes of a patch. Source: Qin et al. 2024,
"MobileNetV4", for the blocks; names and sizes as ``mobilenetv5_300m_enc`` of timm has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from torch import Tensor

from headstock.graph.config import ModelConfig
from headstock.graph.context import Context
from headstock.graph.convolution import Convolution
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.vision import Grid, PatchEmbedding, Send
from headstock.ops.activation import activate
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.features import add_features
from headstock.ops.maps import attend_to_maps, lay_out_patches
from headstock.ops.outputs import join_features
from headstock.ops.vision import mean_of_patches, pixel_values, take_patches
from headstock_models.feature_scale import FeatureScale

GELU = BY_CONFIG_NAME["gelu_pytorch_tanh"]
EPS = 1e-6
CHANNELS, STEM_FEATURES, FEATURES = 3, 64, 2048
"""Of pixels, of what is made of them first, of a token."""
UNIT = 8
"""Features come in multiples of it."""
STRIDES = 16
"""Pixels in height and width of a place of the first map that is taken, the third stage's."""
POOLED = 3
"""Of its places that become one."""


class MobileNetConfig(ModelConfig, frozen=True, kw_only=True):
    """Sizes of the encoder.

    Attributes:
        channel_multiplier: Multiplies the features of stages.
        msfa_output_resolution: Tokens of an image in height and width.
    """

    channel_multiplier: float = 1.0
    msfa_output_resolution: int = 16

    @property
    def patch_size(self) -> int:
        """Pixels in height and width that become a token."""
        return STRIDES * POOLED

    @property
    def patch_bytes(self) -> int:
        """P."""
        return CHANNELS * self.patch_size**2

    def scaled(self, features: int) -> int:
        """Return how many features a stage has that is given some."""
        return whole_units(features * self.channel_multiplier)


def whole_units(features: float) -> int:
    """Return the nearest multiple of :data:`UNIT`, which is not less than nine tenths of it."""
    found = max(UNIT, int(features + UNIT / 2) // UNIT * UNIT)
    return found + UNIT if found < 0.9 * features else found


@dataclass(frozen=True, slots=True)
class Edge:
    """A block that begins with a convolution of all features."""

    features: int
    stride: int = 1
    kernel: int = 3
    expansion: int = 4


@dataclass(frozen=True, slots=True)
class Inverted:
    """A block that widens, with convolutions of single features before it and amid; 0: none."""

    features: int
    start: int
    middle: int
    expansion: int
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Attending:
    """A block of attention, whose keys and values may be of fewer places."""

    features: int
    num_heads: int
    head_dim: int
    stride: int = 1


Block = Edge | Inverted | Attending
STAGES: Sequence[Sequence[Block]] = (
    (Edge(128, stride=2), *[Edge(128)] * 2),
    (Inverted(256, 3, 5, 6, stride=2), *[Inverted(256, 5, 0, 4), Inverted(256, 3, 0, 4)] * 2),
    (
        Inverted(640, 5, 5, 6, stride=2),
        *[Inverted(640, 5, 0, 4)] * 7,
        Inverted(640, 0, 0, 1),
        *[Attending(640, 12, 64, stride=2), Inverted(640, 0, 0, 2)] * 14,
    ),
    (
        Inverted(1280, 5, 5, 6, stride=2),
        *[Attending(1280, 16, 96), Inverted(1280, 0, 0, 2)] * 19,
    ),
)
Side = tuple[int, int]
"""Places of a map in height and width."""


def halved(grid: Side) -> Side:
    """Return the places of a map that a stride of 2 leaves."""
    return -(-grid[0] // 2), -(-grid[1] // 2)


def pointwise(ctx: Context, inputs: int, outputs: int, leaf: str) -> PatchEmbedding:
    """Return a convolution of each place by itself: a matrix product."""
    return PatchEmbedding(ctx, (inputs, 1, 1), outputs, leaf=leaf, has_bias=False)


def gelu(ctx: Context, size: int) -> Callable[[Tensor], Tensor]:
    """Return what activates features between the parts of a block."""
    run = ctx.ops.resolve(activate, ctx.spec(features=GELU.features, size=size))
    return partial(run, activation=GELU)


class ConvolutionAndNorm(Module):
    """A convolution of single features, or of single places, whose result is normalised.

    Args:
        ctx: What to build with.
        inputs: Features.
        outputs: Features; as many as ``inputs`` where there is a ``kernel``.
        kernel: Places in height and width; 0: a place is computed by itself.
        stride: Places from one to the next.
        is_activated: Whether the result is activated.
    """

    def __init__(
        self,
        ctx: Context,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 0,
        stride: int = 1,
        is_activated: bool = False,
    ) -> None:
        shape = (outputs, 1, kernel, kernel)
        self.around = Convolution(ctx, shape, leaf="conv", stride=stride) if kernel else None
        self.place = None if kernel else pointwise(ctx, inputs, outputs, "conv")
        self.norm = RMSNorm(ctx, outputs, leaf="bn", eps=EPS)
        self._activate = gelu(ctx, outputs) if is_activated else None

    def forward(self, x_NC: Tensor, grid: Side) -> Tensor:
        if self.around is not None:
            x_NC = self.around(x_NC, grid)
        elif self.place is not None:
            x_NC = self.place(x_NC)
        x_NC, _ = self.norm(x_NC, None)
        return x_NC if self._activate is None else self._activate(x_NC)


class EdgeBlock(Module):
    def __init__(self, ctx: Context, inputs: int, outputs: int, block: Edge) -> None:
        between = whole_units(inputs * block.expansion)
        shape = (between, inputs, block.kernel, block.kernel)
        self.widen = Convolution(ctx, shape, leaf="conv_exp", stride=block.stride)
        self.norm = RMSNorm(ctx, between, leaf="bn1", eps=EPS)
        self.narrow = pointwise(ctx, between, outputs, "conv_pwl")
        self.out_norm = RMSNorm(ctx, outputs, leaf="bn2", eps=EPS)
        self._activate = gelu(ctx, between)
        self._is_added = inputs == outputs and block.stride == 1
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def forward(self, x_NC: Tensor, grid: Side) -> Tensor:
        y_NC = self._activate(self.norm(self.widen(x_NC, grid), None)[0])
        y_NC, _ = self.out_norm(self.narrow(y_NC), None)
        return self._add(x_NC, y_NC) if self._is_added else y_NC


class InvertedBlock(Module):
    """Features of a place are widened and narrowed, with those of places around it.

    Args:
        ctx: What to build with.
        inputs: Features.
        outputs: Features.
        block: What it is.
        is_last: Whether it is what puts maps together: its result is neither scaled nor added.
    """

    def __init__(
        self, ctx: Context, inputs: int, outputs: int, block: Inverted, *, is_last: bool = False
    ) -> None:
        between, stride = whole_units(inputs * block.expansion), block.stride
        self.dw_start = self.dw_mid = self.scale = None
        if block.start:
            own = 1 if block.middle else stride
            self.dw_start = ConvolutionAndNorm(ctx, inputs, inputs, kernel=block.start, stride=own)
        self.pw_exp = ConvolutionAndNorm(ctx, inputs, between, is_activated=True)
        if block.middle:
            sizes = {"kernel": block.middle, "stride": stride}
            self.dw_mid = ConvolutionAndNorm(ctx, between, between, **sizes, is_activated=True)
        self.pw_proj = ConvolutionAndNorm(ctx, between, outputs)
        if not is_last:
            leaf = "layer_scale.gamma"
            self.scale = FeatureScale(ctx, outputs, leaf=leaf, num_factors=outputs)
        self._is_added = inputs == outputs and stride == 1 and not is_last
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def forward(self, x_NC: Tensor, grid: Side) -> Tensor:
        y_NC = x_NC if self.dw_start is None else self.dw_start(x_NC, grid)
        y_NC = self.pw_exp(y_NC, grid)
        if self.dw_mid is not None:
            y_NC = self.dw_mid(y_NC, grid)
        y_NC = self.pw_proj(y_NC, grid)
        if self.scale is not None:
            y_NC = self.scale(y_NC)
        return self._add(x_NC, y_NC) if self._is_added else y_NC


class Projection(Module):
    """Keys, or values, of all places, or of those that a convolution makes of them."""

    def __init__(self, ctx: Context, inputs: int, outputs: int, stride: int) -> None:
        self.fewer = None
        if stride > 1:
            self.fewer = Convolution(ctx, (inputs, 1, 3, 3), leaf="down_conv", stride=stride)
            self.norm = RMSNorm(ctx, inputs, leaf="norm", eps=EPS)
        self.proj = pointwise(ctx, inputs, outputs, "proj")

    def forward(self, x_NC: Tensor, grid: Side) -> Tensor:
        if self.fewer is not None:
            x_NC, _ = self.norm(self.fewer(x_NC, grid), None)
        return self.proj(x_NC)


class MapAttention(Module):
    """Attention among all places of a map, whose heads share keys and values."""

    alias = "attn"

    def __init__(self, ctx: Context, size: int, block: Attending) -> None:
        width = block.num_heads * block.head_dim
        self.query = Projection(ctx, size, width, 1)
        self.key = Projection(ctx, size, block.head_dim, block.stride)
        self.value = Projection(ctx, size, block.head_dim, block.stride)
        self.output = Projection(ctx, width, size, 1)
        spec = ctx.spec(num_heads=block.num_heads, head_dim=block.head_dim)
        self._attend = partial(ctx.ops.resolve(attend_to_maps, spec), num_heads=block.num_heads)

    def forward(self, x_NC: Tensor, grid: Side) -> Tensor:
        q_NC, k_ME, v_ME = (part(x_NC, grid) for part in (self.query, self.key, self.value))
        num_maps = x_NC.shape[0] // (grid[0] * grid[1])
        return self.output(self._attend(q_NC, k_ME, v_ME, num_maps=num_maps), grid)


class AttentionBlock(Module):
    def __init__(self, ctx: Context, size: int, block: Attending) -> None:
        self.norm = RMSNorm(ctx, size, leaf="norm", eps=EPS)
        self.attention = MapAttention(ctx, size, block)
        self.scale = FeatureScale(ctx, size, leaf="layer_scale.gamma", num_factors=size)
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def forward(self, x_NC: Tensor, grid: Side) -> Tensor:
        y_NC = self.attention(self.norm(x_NC, None)[0], grid)
        return self._add(x_NC, self.scale(y_NC))


def make_block(ctx: Context, inputs: int, outputs: int, block: Block) -> Module:
    """Return a block of a stage."""
    if isinstance(block, Edge):
        return EdgeBlock(ctx, inputs, outputs, block)
    if isinstance(block, Inverted):
        return InvertedBlock(ctx, inputs, outputs, block)
    return AttentionBlock(ctx, outputs, block)


class Stage(Module):
    """Blocks one after another, the first of which halves a map in height and width."""

    def __init__(
        self, ctx: Context, inputs: int, c: MobileNetConfig, blocks: Sequence[Block]
    ) -> None:
        sizes = [inputs, *(c.scaled(block.features) for block in blocks)]
        self.parts = [
            make_block(ctx, *pair, block)
            for pair, block in zip(pairwise(sizes), blocks, strict=True)
        ]
        self.num_features = sizes[-1]

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the blocks by their numbers alone."""
        return ((str(number), part) for number, part in enumerate(self.parts))

    def forward(self, x_NC: Tensor, grid: Side) -> Tensor:
        for part in self.parts:
            x_NC = part(x_NC, grid)
            if part is self.parts[0]:
                grid = halved(grid)
        return x_NC


class Stem(Module):
    """A convolution of pixels, normalised and activated."""

    alias = "conv_stem"

    def __init__(self, ctx: Context) -> None:
        shape = (STEM_FEATURES, CHANNELS, 3, 3)
        self.conv = Convolution(ctx, shape, leaf="conv", stride=2, has_bias=True)
        self.norm = RMSNorm(ctx, STEM_FEATURES, leaf="bn", eps=EPS)
        self._activate = gelu(ctx, STEM_FEATURES)

    def forward(self, x_NC: Tensor, grid: Side) -> Tensor:
        return self._activate(self.norm(self.conv(x_NC, grid), None)[0])


class Fusion(Module):
    """What the last two stages make, put together; a token for each square of places."""

    alias = "msfa"

    def __init__(self, ctx: Context, c: MobileNetConfig, inputs: int) -> None:
        block = Inverted(FEATURES, 0, 0, 2)
        self.ffn = InvertedBlock(ctx, inputs, FEATURES, block, is_last=True)
        self.norm = RMSNorm(ctx, FEATURES, leaf="norm", eps=EPS)
        self._take = ctx.ops.resolve(take_patches, ctx.spec(size=inputs))
        self._take_whole = ctx.ops.resolve(take_patches, ctx.spec(size=FEATURES))
        self._join = ctx.ops.resolve(join_features, ctx.spec())
        mean = ctx.ops.resolve(mean_of_patches, ctx.spec(size=FEATURES))
        self._mean = partial(mean, count=POOLED**2)

    def forward(self, x_NC: Tensor, small_MC: Tensor, places: np.ndarray, send: Send) -> Tensor:
        """Return the features of tokens.

        Args:
            x_NC: What the stage before the last one makes.
            small_MC: What the last one makes, of half as many places in height and width.
            places: Of all maps the numbers of places in ``x_NC``. [maps, height, width]
            send: Brings an array to the device.
        """
        maps, height, width = places.shape
        tall, wide = halved((height, width))
        rows = np.arange(maps)[:, None] * tall + np.arange(height) * tall // height
        nearest = rows[:, :, None] * wide + np.arange(width) * wide // width
        x_NC = self.ffn(
            self._join(x_NC, self._take(small_MC, send(nearest.reshape(-1)))), (height, width)
        )
        squares = places.reshape(maps, height // POOLED, POOLED, width // POOLED, POOLED)
        order = np.ascontiguousarray(squares.transpose(0, 1, 3, 2, 4)).reshape(-1)
        return self.norm(self._mean(self._take_whole(x_NC, send(order))), None)[0]


class MobileNetV5(Module):
    """Square patches of images to the features of as many tokens.

    Args:
        ctx: What to build with.
        c: Sizes.
    """

    def __init__(self, ctx: Context, c: MobileNetConfig) -> None:
        self.stem = Stem(ctx)
        self.blocks: list[Module] = []
        inputs = STEM_FEATURES
        taken: list[int] = []
        for blocks in STAGES:
            stage = Stage(ctx, inputs, c, blocks)
            self.blocks.append(stage)
            inputs = stage.num_features
            taken.append(inputs)
        self.fusion = Fusion(ctx, c, sum(taken[-2:]))
        self._dtype = ctx.dtype
        self._pixels = ctx.ops.resolve(pixel_values, ctx.spec())
        lay_out = ctx.ops.resolve(lay_out_patches, ctx.spec())
        self._lay_out = partial(lay_out, channels=CHANNELS)
        self._patch_size = c.patch_size

    def forward(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
    ) -> Tensor:
        """Return features; see :class:`headstock.graph.vision.MediaModel`. All grids are equal."""
        (grid,) = {(height, width) for _, height, width in grids}
        values_NP = self._pixels(pixels_NP, scale_C, shift_C, dtype=self._dtype)
        x_NC = self._lay_out(values_NP, height=grid[0], width=grid[1])
        side = (grid[0] * self._patch_size, grid[1] * self._patch_size)
        x_NC, side = self.stem(x_NC, side), halved(side)
        maps: list[Tensor] = []
        for stage in self.blocks:
            x_NC, side = stage(x_NC, side), halved(side)
            maps.append(x_NC)
        height, width = grid[0] * POOLED, grid[1] * POOLED
        places = np.arange(len(grids) * height * width).reshape(-1, height, width)
        return self.fusion(*maps[-2:], places, send)
