"""Normalisation layers. Shapes: T tokens, D features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.ops.norm import add_rms_norm, rms_norm
from headstock.quantization.plan import Layout, Role


class RMSNorm(Layer):
    """Adds to the residual stream, and divides by the root mean square.

    Args:
        ctx: What to build with.
        size: D.
        leaf: Checkpoint name.
        eps: Added to the mean square. Dimensionless.
    """

    def __init__(self, ctx: Context, size: int, *, leaf: str, eps: float) -> None:
        self._leaf, self._eps = leaf, eps
        self._norm = ctx.ops.resolve(rms_norm, ctx.spec(size=size))
        self._add_norm = ctx.ops.resolve(add_rms_norm, ctx.spec(size=size))
        self._weight_D = torch.empty(size, dtype=ctx.dtype, device=ctx.device.torch_device)

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the normalised sum of both, and the sum: the new residual stream.

        Args:
            x_TD: Output of the layer before. [T, D]
            residual_TD: The residual stream; None: ``x_TD`` begins it. [T, D]
        """
        if residual_TD is None:
            return self._norm(x_TD, self._weight_D, eps=self._eps), x_TD
        return self._add_norm(x_TD, residual_TD, self._weight_D, eps=self._eps)

    def leaves(self) -> Sequence[Leaf]:
        """Return the weight."""
        return [Leaf(f"{self._leaf}.weight", tuple(self._weight_D.shape), Role.SCALE)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weight is small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy the weight."""
        self._weight_D.copy_(source.read(0, source.shape[0])["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight."""
        return self._weight_D.nbytes
