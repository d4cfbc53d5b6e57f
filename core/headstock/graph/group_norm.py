"""Gated norms of groups of features, which ranks may share. Shapes: T tokens, I features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from headstock.errors import ConfigError
from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.graph.split import Span
from headstock.ops.gates import gate_by_silu, gated_group_norm
from headstock.ops.wide_norm import norm_queries_and_keys, sum_squares
from headstock.quantization.plan import Layout, Role


class GatedGroupNorm(Layer):
    """Gates by silu, and divides each group of features by its root mean square.

    Reads ``norm.weight`` [I]. Where a group is all there is, ranks add up their squares.

    Args:
        ctx: What to build with.
        size: I, over all ranks.
        span: This rank's features.
        num_groups: Groups of neighbouring features, over all ranks.
        eps: Added to the means of squares. Dimensionless.
        is_gated_first: Whether what is gated is normalised, or what is normalised gated.

    Raises:
        ConfigError: A group lies on some ranks and not on others.
    """

    def __init__(
        self,
        ctx: Context,
        size: int,
        span: Span,
        *,
        num_groups: int,
        eps: float,
        is_gated_first: bool,
    ) -> None:
        self._size, self._span, self._eps = size, span, eps
        self._tp, self._is_gated_first = ctx.tp, is_gated_first
        made = {"dtype": ctx.dtype, "device": ctx.device.torch_device}
        self._weight_I = torch.ones(span.size, **made)
        self._run: Callable[[Tensor, Tensor], Tensor]
        if num_groups % ctx.tp.size == 0:
            run = ctx.ops.resolve(gated_group_norm, ctx.spec(group_size=size // num_groups))
            self._run = partial(
                run,
                weight_C=self._weight_I,
                num_groups=num_groups // ctx.tp.size,
                eps=eps,
                is_gated_first=is_gated_first,
            )
            return
        if num_groups > 1:
            raise ConfigError(
                f"tp_size is {ctx.tp.size}, and state spaces have {num_groups} groups.",
                remedy=f"Set --tp-size to a divisor of {num_groups}.",
            )
        self._gate = ctx.ops.resolve(gate_by_silu, ctx.spec())
        self._squares = ctx.ops.resolve(sum_squares, ctx.spec())
        self._norm = ctx.ops.resolve(norm_queries_and_keys, ctx.spec())
        self._no_weights = torch.ones(0, **made)
        self._run = self._normalise_together

    def forward(self, x_TI: Tensor, gate_TI: Tensor) -> Tensor:
        """Return the gated norm of this rank's features. [T, I]"""
        return self._run(x_TI, gate_TI)

    def _normalise_together(self, x_TI: Tensor, gate_TI: Tensor) -> Tensor:
        """Normalise features that lie on all ranks: queries of a token without keys."""
        if self._is_gated_first:
            x_TI = self._gate(x_TI, gate_TI)
        squares_T2 = self._squares(x_TI, q_size=self._span.size, k_size=0)
        y_TI = self._norm(
            x_TI,
            self._tp.all_reduce(squares_T2),
            self._weight_I,
            self._no_weights,
            q_width=self._size,
            k_width=1,
            eps=self._eps,
        )
        return y_TI if self._is_gated_first else self._gate(y_TI, gate_TI)

    def leaves(self) -> Sequence[Leaf]:
        """Return the weight."""
        return [Leaf("norm.weight", (self._size,), Role.SCALE)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weight is small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy this rank's share of the weight."""
        self._weight_I.copy_(source.read(self._span.begin, self._span.end)["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight."""
        return self._weight_I.nbytes
