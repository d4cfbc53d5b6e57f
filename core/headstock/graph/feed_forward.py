"""Feed-forward layers. Shapes: T tokens, D hidden size."""

from __future__ import annotations

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.ops.activation import silu_and_mul


class GatedMLP(Module):
    """W_down(silu(W_gate x) * (W_up x)).

    Args:
        ctx: What to build with.
        hidden_size: D.
        intermediate_size: Features between, over all ranks.
    """

    def __init__(self, ctx: Context, hidden_size: int, intermediate_size: int) -> None:
        leaves = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up = Linear(ctx, hidden_size, leaves)
        self.down = Linear(ctx, intermediate_size, {"down_proj": hidden_size}, split="in")
        size = self.gate_up.out_features // 2
        self.activate = ctx.ops.resolve(silu_and_mul, ctx.spec(size=size))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the layer's output. [T, D]"""
        return self.down(self.activate(self.gate_up(x_TD)))
