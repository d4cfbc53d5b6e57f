"""Norms and feed-forward layers of transformers that are the same as ours, by trying them.

Shapes: T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from headstock.graph.context import Context
from headstock.graph.feed_forward import MLP, GatedMLP
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm, RMSNorm
from headstock.ops.activation_kinds import GELU, GELU_TANH, RELU2, SILU, Activation
from headstock.ops.moe import Matrix
from headstock_models.fallback.parts import StandIn
from headstock_models.fallback.probe import (
    SIZE,
    Draw,
    DrawnLinear,
    attempt,
    is_same,
    linears,
    shell,
)

EPSILONS = ("variance_epsilon", "eps", "epsilon")
"""Attributes that norms keep their epsilon in."""
ACTIVATIONS = (SILU, GELU_TANH, GELU, RELU2)
GATED: Sequence[tuple[str, ...]] = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""What classes call the gate, the matrix beside it, and the one behind both."""
PLAIN: Sequence[tuple[str, ...]] = (("up_proj", "down_proj"), ("fc1", "fc2"), ("c_fc", "c_proj"))
"""What classes without a gate call theirs."""
FUSED = ("gate_up_proj", "down_proj")
"""What classes call theirs that have the gate and the matrix beside it in one."""
INNER = 12
"""Features between the matrices of probes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A norm over the last dimension.

    Attributes:
        size: D.
        eps: Added to the mean square, or to the variance.
        is_centering: Whether the mean is taken away first.
        has_bias: Whether the result is shifted.
        is_zero_centered: Whether the weight is how far the factor is from 1.
    """

    size: int
    eps: float
    is_centering: bool
    has_bias: bool
    is_zero_centered: bool

    def apply(self, x_TD: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return what a module of this kind makes. [..., D]"""
        if self.is_centering:
            return functional.layer_norm(x_TD, (x_TD.shape[-1],), weight, bias, self.eps)
        inverse = torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + self.eps)
        return x_TD * inverse * (weight + 1 if self.is_zero_centered else weight)

    def build(self, ctx: Context, leaf: str) -> RMSNorm | LayerNorm:
        """Return our layer, whose weight is the leaf ``leaf``."""
        if self.is_centering:
            return LayerNorm(ctx, self.size, leaf=leaf, eps=self.eps, has_bias=self.has_bias)
        centered = self.is_zero_centered
        return RMSNorm(ctx, self.size, leaf=leaf, eps=self.eps, is_zero_centered=centered)


def find_norm(module: nn.Module) -> Norm | None:
    """Return what norm a module is; None: none that ours compute."""
    given = {n: p for n, p in module._parameters.items() if p is not None}
    eps = next((getattr(module, n) for n in EPSILONS if hasattr(module, n)), None)
    is_alike = set(given) in ({"weight"}, {"weight", "bias"}) and given["weight"].ndim == 1
    if not is_alike or module._modules or not isinstance(eps, float):
        return None
    draw, has_bias = Draw(), "bias" in given
    weights = {name: draw(SIZE) for name in given}
    attributes = {"normalized_shape": (SIZE,)} if isinstance(module, nn.LayerNorm) else {}
    tried = shell(module, weights, **attributes)
    # Some tokens are so small that epsilon counts.
    x_TD = torch.cat((draw(3, SIZE), draw(3, SIZE) * eps**0.5))
    got = attempt(lambda: tried(x_TD))
    size = given["weight"].numel()
    for is_centering, is_zero_centered in ((False, False), (False, True), (True, False)):
        found = Norm(
            size=size,
            eps=eps,
            is_centering=is_centering,
            has_bias=has_bias,
            is_zero_centered=is_zero_centered,
        )
        if has_bias <= is_centering and is_same(got, found.apply(x_TD, **weights)):
            return found
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """Two matrices with an activation between, or three of which one is a gate.

    The gate and the matrix beside it may be one, twice as wide, of the name in :data:`FUSED`.

    Attributes:
        names: Of the matrices; the last is the one behind the activation.
        hidden_size: D.
        intermediate_size: Features between.
        activation: Of those, or of the gate.
        has_bias: Whether each matrix has a bias.
    """

    names: tuple[str, ...]
    hidden_size: int
    intermediate_size: int
    activation: Activation
    has_bias: bool

    def build(self, ctx: Context) -> Module:
        """Return our layer."""
        sizes = (self.hidden_size, self.intermediate_size, self.activation)
        if self.names == FUSED:
            return GatedMLP(ctx, *sizes, has_bias=self.has_bias, is_fused=True)
        if len(self.names) == 2:
            up, down = self.names
            return MLP(ctx, *sizes, up=up, down=down, has_bias=self.has_bias)
        gate, up, down = self.names
        names: Mapping[Matrix, str] = {"gate": gate, "up": up, "down": down}
        return GatedMLP(ctx, *sizes, has_bias=self.has_bias, names=names)


def find_feed_forward(module: nn.Module) -> FeedForward | None:
    """Return what feed-forward layer a module is; None: none that ours compute."""
    found = linears(module)
    names = next(
        (n for n in (*GATED, *PLAIN, FUSED) if found is not None and set(n) == set(found)), None
    )
    if not found or names is None:
        return None
    *into, last = (found[name] for name in names)
    wide = 1 + (names == FUSED)
    sizes, biases = {(m.in_features, m.out_features) for m in into}, {m.bias is None for m in into}
    if sizes != {(last.out_features, wide * last.in_features)} or biases != {last.bias is None}:
        return None
    draw, has_bias = Draw(), last.bias is not None
    drawn = [DrawnLinear(draw, SIZE, wide * INNER, has_bias=has_bias) for _ in into]
    drawn.append(DrawnLinear(draw, INNER, SIZE, has_bias=has_bias))
    tried, x_TD = shell(module, dict(zip(names, drawn, strict=True))), 2 * draw(5, SIZE) - 1
    got = attempt(lambda: tried(x_TD))
    for activation in ACTIVATIONS:
        if is_same(got, _feed(drawn, activation, x_TD)):
            return FeedForward(
                names=names,
                hidden_size=last.out_features,
                intermediate_size=last.in_features,
                activation=activation,
                has_bias=has_bias,
            )
    return None


def _feed(matrices: Sequence[Any], activation: Activation, x_TD: Tensor) -> Tensor:
    """Return what the layer is expected to make. [T, D]"""
    *into, down = matrices
    parts = [part for matrix in into for part in matrix(x_TD).split(INNER, dim=-1)]
    return down(activation.join(parts[0], parts[1] if parts[1:] else torch.ones_like(parts[0])))


class Normed(StandIn):
    """A norm of ours at the place of one of transformers'."""

    def __init__(self, layer: RMSNorm | LayerNorm, norm: Norm, like: nn.Module) -> None:
        super().__init__(like)
        self.layer, self._size = layer, norm.size

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised features. [..., D]"""
        assert hidden_states.shape[-1] == self._size, "a norm is over other features than its own"
        return self.layer(hidden_states.reshape(-1, self._size), None)[0].view(hidden_states.shape)


class Fed(StandIn):
    """A feed-forward layer of ours at the place of one of transformers'."""

    def __init__(self, layer: Module, like: nn.Module) -> None:
        super().__init__(like)
        self.layer = layer

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return its output. [..., D]"""
        flat_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        return self.layer(flat_TD).view(hidden_states.shape)
