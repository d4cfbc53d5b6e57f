"""Feed-forward layers. Shapes: T tokens, D hidden size, G gate and up features."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from headstock.graph.arranged import ArrangedLinear, features
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.moe import QWEN_NAMES
from headstock.ops.activation import activate
from headstock.ops.activation_kinds import SILU, Activation
from headstock.ops.moe import Matrix


class GatedMLP(Module):
    """W_down(activation(W_gate x) * (W_up x)).

    Args:
        ctx: What to build with.
        hidden_size: D.
        intermediate_size: Features between, over all ranks.
        activation: Of the gate.
        has_bias: Whether each matrix has a bias.
        is_fused: Whether the checkpoint has gate and up in one matrix, whose name is then that of
            the gate's.
        names: What it calls them otherwise.
    """

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        intermediate_size: int,
        activation: Activation = SILU,
        *,
        has_bias: bool = False,
        is_fused: bool = False,
        names: Mapping[Matrix, str] = QWEN_NAMES,
    ) -> None:
        size = intermediate_size
        down = Linear(ctx, size, {names["down"]: hidden_size}, split="in", has_bias=has_bias)
        given = {"has_bias": has_bias, "activation": activation, "into": down}
        if is_fused:
            rows = [features(size), features(size, first=size)]
            fused = "gate_up_proj" if names is QWEN_NAMES else names["gate"]
            self.gate_up = ArrangedLinear(ctx, hidden_size, {fused: rows}, **given)
        else:
            leaves = {names["gate"]: size, names["up"]: size}
            self.gate_up = Linear(ctx, hidden_size, leaves, **given)
        self.down = down

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the layer's output. [T, D]"""
        return self.down(self.gate_up(x_TD))


class MLP(Module):
    """W_down(activation(W_up x)): no gate.

    Args:
        ctx: What to build with.
        hidden_size: D.
        intermediate_size: Features between, over all ranks.
        activation: Of those.
        up: What the checkpoint calls the first matrix.
        down: What it calls the second.
        has_bias: Whether each matrix has a bias.
    """

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        intermediate_size: int,
        activation: Activation,
        *,
        up: str = "up_proj",
        down: str = "down_proj",
        has_bias: bool = False,
    ) -> None:
        self.up = Linear(ctx, hidden_size, {up: intermediate_size}, has_bias=has_bias)
        leaves = {down: hidden_size}
        self.down = Linear(ctx, intermediate_size, leaves, split="in", has_bias=has_bias)
        spec = ctx.spec(features=activation.features, size=intermediate_size // ctx.tp.size)
        run = ctx.ops.resolve(activate, spec)
        self._activate = partial(run, activation=activation)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the layer's output. [T, D]"""
        return self.down(self._activate(self.up(x_TD)))
