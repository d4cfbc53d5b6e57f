"""Attention to keys and values that an earlier layer keeps.

Shapes: T tokens, H query heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from headstock.graph.attention import Attention
from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.norm import NormWeight
from headstock.graph.rotary import Rotary
from headstock.graph.source import Source
from headstock.ops.attention import StepBatch
from headstock.ops.rotary import rotate_queries
from headstock.quantization.plan import Layout, Role


class SharedAttention(Layer):
    """Rotates queries, and attends to the keys and values of another layer.

    It has no pages: it is not among ``ctx.attention_layers``, so that neither the runner nor the
    cache knows of it. It reads those of ``keeper``, which has written the step's own tokens when
    this layer is computed. Heads, scale and window are the keeper's.

    Args:
        ctx: What to build with.
        keeper: The layer that stores; an earlier one of the same model.
        rotary: The table that its keys are rotated by; None leaves positions out.
        q_norm: Epsilon of an RMS norm over each query head, whose weight is the leaf ``q_norm``;
            None: no norm.
        is_zero_centered: Whether the checkpoint has how far the norm's weight is from 1.
    """

    def __init__(
        self,
        ctx: Context,
        keeper: Attention,
        *,
        rotary: Rotary | None = None,
        q_norm: float | None = None,
        is_zero_centered: bool = False,
    ) -> None:
        self._group, self._attend = keeper.group, keeper.attend
        self._table_LC = None if rotary is None else rotary.cos_sin_LC
        self._num_heads, self._head_dim = keeper.num_heads, keeper.head_dim
        self._eps = 0.0 if q_norm is None else q_norm
        self._is_interleaved = rotary is not None and rotary.is_interleaved
        self._norm: NormWeight | None = None
        if q_norm is not None:
            self._norm = NormWeight(ctx, self._head_dim, is_zero_centered=is_zero_centered)
        spec = ctx.spec(
            features=frozenset[str]() if self._norm is None else self._norm.features,
            num_heads=self._num_heads,
            head_dim=self._head_dim,
            rotary_size=0 if rotary is None else rotary.rotary_dim,
        )
        self._prepare = ctx.ops.resolve(rotate_queries, spec)

    def forward(self, q_TC: Tensor, batch: StepBatch) -> Tensor:
        """Attend.

        Args:
            q_TC: Queries. [T, H D]
            batch: The step, which the keeper's provider has planned.

        Returns:
            [T, H D]
        """
        batch = batch.groups[self._group]
        q_THD = self._prepare(
            q_TC,
            self._table_LC,
            None if self._norm is None else self._norm.values_D,
            batch.positions_T,
            num_heads=self._num_heads,
            head_dim=self._head_dim,
            eps=self._eps,
            is_interleaved=self._is_interleaved,
        )
        return self._attend(q_THD, batch)

    def leaves(self) -> Sequence[Leaf]:
        """Return the norm's weight, where there is one."""
        if self._norm is None:
            return []
        return [Leaf("q_norm.weight", (self._head_dim,), Role.SCALE)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weight is small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy the norm's weight."""
        assert self._norm is not None, f"{name} came for attention without a norm"
        self._norm.load(source)

    @property
    def num_bytes(self) -> int:
        """Bytes of the norm's weight."""
        return 0 if self._norm is None else self._norm.values_D.nbytes
