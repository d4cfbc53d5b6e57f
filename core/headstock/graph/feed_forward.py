"""Feed-forward layers. Shapes: T tokens, D hidden size, G gate and up features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.ops.activation import silu_and_mul, silu_and_mul_groups
from headstock.ops.linear import GroupedActivations


class GatedMLP(Module):
    """W_down(silu(W_gate x) * (W_up x)).

    Args:
        ctx: What to build with.
        hidden_size: D.
        intermediate_size: Features between, over all ranks.
    """

    def __init__(self, ctx: Context, hidden_size: int, intermediate_size: int) -> None:
        # Set first, so that it is allocated first: the gate asks what it takes.
        self.down = Linear(ctx, intermediate_size, {"down_proj": hidden_size}, split="in")
        leaves = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up = Linear(
            ctx,
            hidden_size,
            leaves,
            gate=lambda: gate_into(ctx, self.down),
            gate_op=silu_and_mul,
        )

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the layer's output. [T, D]"""
        return self.down(self.gate_up(x_TD))


def gate_into(ctx: Context, down: Linear) -> Callable[[Tensor], Any]:
    """Return the activation whose result ``down`` takes: quantised, where that is fused with it."""
    size, group_size = down.in_features, down.input_group
    if group_size:
        quantise = ctx.ops.own(silu_and_mul_groups, ctx.spec(size=size, group_size=group_size))
        if quantise is not None:
            return lambda gate_up_TG: GroupedActivations(
                *quantise(gate_up_TG, group_size=group_size)
            )
    return ctx.ops.resolve(silu_and_mul, ctx.spec(size=size))
