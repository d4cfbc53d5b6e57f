"""Convolutions of maps.

Shapes: N places that come in, M that go out, C and O features, G of a group, K of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.ops.maps import convolve
from headstock.quantization.plan import Layout, Role


class Convolution(Layer):
    """Features of each place out of those around it; its weights are kept as they come.

    Args:
        ctx: What to build with.
        shape: Of the kernel: output features, input features of a group, and its two extents.
        leaf: Checkpoint name.
        stride: Places from one that goes out to the next.
        has_bias: Whether it has a bias.
    """

    def __init__(
        self,
        ctx: Context,
        shape: tuple[int, int, int, int],
        *,
        leaf: str,
        stride: int = 1,
        has_bias: bool = False,
    ) -> None:
        where = ctx.device.torch_device
        self._kernel_OGKK = torch.empty(shape, dtype=ctx.dtype, device=where)
        self._bias_O = torch.empty(shape[0], dtype=ctx.dtype, device=where) if has_bias else None
        self._values = {f"{leaf}.weight": self._kernel_OGKK}
        if self._bias_O is not None:
            self._values[f"{leaf}.bias"] = self._bias_O
        spec = ctx.spec(out_features=shape[0], group=shape[1], kernel=shape[2])
        self._convolve = partial(ctx.ops.resolve(convolve, spec), stride=stride)

    def forward(self, x_NC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the maps that it makes of maps with ``grid`` places in height and width. [M, O]"""
        height, width = grid
        return self._convolve(x_NC, self._kernel_OGKK, self._bias_O, height=height, width=width)

    def leaves(self) -> Sequence[Leaf]:
        """Return the kernel, and the bias if there is one."""
        return [Leaf(name, tuple(v.shape), Role.BIAS) for name, v in self._values.items()]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weights are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy the kernel or the bias."""
        self._values[name].copy_(source.read(0, source.shape[0])["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of both."""
        return sum(value.nbytes for value in self._values.values())
