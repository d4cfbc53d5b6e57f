"""Normalisation layers. Shapes: T tokens, D features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.ops.norm import WIDE_WEIGHT, add_layer_norm, add_rms_norm, layer_norm, rms_norm
from headstock.quantization.plan import Layout, Role


class NormWeight:
    """What a norm multiplies by.

    Zero-centred weights are kept in float32, with the 1 added: narrower floats would round away
    what is small beside it.

    Args:
        ctx: What to build with.
        size: D.
        is_zero_centered: Whether the checkpoint has how far the weight is from 1.

    Attributes:
        values_D: Of the model's dtype, or float32.
        features: What ops are asked for that take it.
    """

    def __init__(self, ctx: Context, size: int, *, is_zero_centered: bool) -> None:
        dtype = torch.float32 if is_zero_centered else ctx.dtype
        self._is_zero_centered = is_zero_centered
        self.values_D = torch.empty(size, dtype=dtype, device=ctx.device.torch_device)
        self.features = frozenset({WIDE_WEIGHT} if dtype != ctx.dtype else ())

    def load(self, source: Source) -> None:
        """Take the weight of a checkpoint."""
        self.values_D.copy_(source.read(0, source.shape[0])["weight"])
        if self._is_zero_centered:
            self.values_D.add_(1)

    def read(self, num_rows: int) -> Tensor:
        """Return the first values, as a checkpoint has them."""
        values_D = self.values_D[:num_rows]
        return values_D - 1 if self._is_zero_centered else values_D


class RMSNorm(Layer):
    """Adds to the residual stream, and divides by the root mean square.

    Args:
        ctx: What to build with.
        size: D.
        leaf: Checkpoint name.
        eps: Added to the mean square. Dimensionless.
        is_zero_centered: Whether the checkpoint has how far the weight is from 1.
    """

    def __init__(
        self, ctx: Context, size: int, *, leaf: str, eps: float, is_zero_centered: bool = False
    ) -> None:
        self._leaf, self._eps = leaf, eps
        self._weight = NormWeight(ctx, size, is_zero_centered=is_zero_centered)
        spec = ctx.spec(features=self._weight.features, size=size)
        self._norm = ctx.ops.resolve(rms_norm, spec)
        self._add_norm = ctx.ops.resolve(add_rms_norm, spec)
        self._weight_D = self._weight.values_D

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
        self._weight.load(source)

    def read(self, name: str, num_rows: int) -> Tensor:
        """Return the first values of the weight."""
        return self._weight.read(num_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight."""
        return self._weight_D.nbytes


class LayerNorm(Layer):
    """Adds to the residual stream, takes the mean away and divides by the deviation.

    Args:
        ctx: What to build with.
        size: D.
        leaf: Checkpoint name.
        eps: Added to the variance. Dimensionless.
        has_bias: Whether the result is shifted.
    """

    def __init__(
        self, ctx: Context, size: int, *, leaf: str, eps: float, has_bias: bool = True
    ) -> None:
        self._eps = eps
        spec, where = ctx.spec(size=size), ctx.device.torch_device
        self._norm = ctx.ops.resolve(layer_norm, spec)
        self._add_norm = ctx.ops.resolve(add_layer_norm, spec)
        self._weight_D = torch.empty(size, dtype=ctx.dtype, device=where)
        self._bias_D = torch.empty(size, dtype=ctx.dtype, device=where) if has_bias else None
        self._values = {f"{leaf}.weight": self._weight_D}
        if self._bias_D is not None:
            self._values[f"{leaf}.bias"] = self._bias_D

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the normalised sum of both, and the sum; see :meth:`RMSNorm.forward`."""
        if residual_TD is None:
            return self._norm(x_TD, self._weight_D, self._bias_D, eps=self._eps), x_TD
        return self._add_norm(x_TD, residual_TD, self._weight_D, self._bias_D, eps=self._eps)

    def leaves(self) -> Sequence[Leaf]:
        """Return the scale and the shift."""
        shape = tuple(self._weight_D.shape)
        roles = {
            name: Role.SCALE if name.endswith("weight") else Role.BIAS for name in self._values
        }
        return [Leaf(name, shape, role) for name, role in roles.items()]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weights are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy the scale or the shift."""
        self._values[name].copy_(source.read(0, source.shape[0])["weight"])

    def read(self, name: str, num_rows: int) -> Tensor:
        """Return the first values of the scale or the shift."""
        return self._values[name][:num_rows]

    @property
    def num_bytes(self) -> int:
        """Bytes of both."""
        return sum(value.nbytes for value in self._values.values())
