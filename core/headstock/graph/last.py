"""Leaves out, in a model's last layer, the tokens whose hidden states no row asks for.

Past the last attention no token sees another: only those that logits are wanted of go on.
"""

from __future__ import annotations

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.ops.attention import StepBatch
from headstock.ops.steps import last_of_rows


class LastOfRows(Module):
    """Keeps each row's last token where the step wants no more, in the layer that is the last.

    Args:
        ctx: What to build with.
        is_last: Whether the layer is; in others everything is kept.
    """

    def __init__(self, ctx: Context, *, is_last: bool) -> None:
        self._is_last = is_last
        self._take = ctx.ops.resolve(last_of_rows, ctx.spec())

    def forward(self, x_TD: Tensor, batch: StepBatch) -> Tensor:
        """Return the rows' last tokens, or all. [R, D] or [T, D]"""
        if self._is_last and batch.wants_last:
            return self._take(x_TD, batch.query_starts_R1)
        return x_TD
