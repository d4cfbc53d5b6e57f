"""Learned factors of features under a bare name. Shapes: T tokens, D features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.ops.features import weigh_features
from headstock.quantization.plan import Layout, Role


class FeatureScale(Layer):
    """Multiplies features by those of ``leaf``.

    Args:
        ctx: What to build with.
        size: D.
        leaf: Checkpoint name.
        num_factors: How many the checkpoint has: D, or 1 for all of them.
    """

    def __init__(self, ctx: Context, size: int, *, leaf: str, num_factors: int) -> None:
        self._leaf, self._num_factors = leaf, num_factors
        self._values_D = torch.ones(size, dtype=ctx.dtype, device=ctx.device.torch_device)
        self._weigh = ctx.ops.resolve(weigh_features, ctx.spec())

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the products. [T, D]"""
        return self._weigh(x_TD, self._values_D)

    def leaves(self) -> Sequence[Leaf]:
        """Return the factors."""
        return [Leaf(self._leaf, (self._num_factors,), Role.SCALE)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: they are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Take the factors."""
        found = source.read(0, source.shape[0])["weight"]
        self._values_D.copy_(found.expand_as(self._values_D))

    @property
    def num_bytes(self) -> int:
        """Bytes of them, one for each feature."""
        return self._values_D.nbytes
