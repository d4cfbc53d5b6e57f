"""Feed-forward layers. Shapes: T tokens, D hidden size, G gate and up features."""

from __future__ import annotations

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.ops.activation_kinds import SILU, Activation


class GatedMLP(Module):
    """W_down(activation(W_gate x) * (W_up x)).

    Args:
        ctx: What to build with.
        hidden_size: D.
        intermediate_size: Features between, over all ranks.
        activation: Of the gate.
    """

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        intermediate_size: int,
        activation: Activation = SILU,
    ) -> None:
        # Set first, so that it is allocated first: what turns into its inputs asks what it takes.
        self.down = Linear(ctx, intermediate_size, {"down_proj": hidden_size}, split="in")
        leaves = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up = Linear(ctx, hidden_size, leaves, activation=activation, into=self.down)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the layer's output. [T, D]"""
        return self.down(self.gate_up(x_TD))
