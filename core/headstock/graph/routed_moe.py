"""Mixtures of experts with routing as data, and experts that every token has.

Shapes: T tokens, E experts, k experts of a token, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.graph.context import Context
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Layer, Leaf, Module
from headstock.graph.moe import QWEN_NAMES, Experts
from headstock.graph.source import Source
from headstock.ops.activation_kinds import SILU, Activation
from headstock.ops.moe import Matrix, route_topk
from headstock.ops.outputs import soft_cap
from headstock.ops.routing import (
    Routing,
    add_identities,
    add_shared,
    drop_identities,
    route_experts,
)
from headstock.quantization.plan import Layout, Role


class RoutedMoE(Module):
    """sum over the chosen experts of weight · W_down(silu(W_gate x) * (W_up x)), and shared ones.

    Reads ``gate.weight``, the router's, the experts' matrices, and what ``bias_leaf`` and
    ``shared_gate`` name.

    Args:
        ctx: What to build with.
        hidden_size: D.
        intermediate_size: Features between an expert's matrices, over all ranks.
        num_experts: E.
        routing: How experts are chosen and weighed.
        bias_leaf: Checkpoint name of a bias on the choice, below this module; "": none.
        bias_shape: How the checkpoint has it; () stands for [E].
        shared: What every token goes through beside its experts, named by its ``alias``, or None.
        shared_gate: Checkpoint name of the matrix [1, D] whose sigmoid weighs it; "": none.
        names: What the checkpoint calls an expert's matrices.
        router: What it calls the router's.
        router_cap: What no logit of the router goes past; None: none.
        activation: Of experts' gates, or of what has none.
        num_identities: Further experts of the router, behind the others, that have no matrices and
            return a token as it came.
        latent: Features that experts take instead of D, and what makes these and goes back; None:
            they take the hidden state.

    Raises:
        UnsupportedError: The experts do not divide into the groups, or these hold too few.
    """

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        routing: Routing,
        *,
        bias_leaf: str = "",
        bias_shape: tuple[int, ...] = (),
        shared: Module | None = None,
        shared_gate: str = "",
        names: Mapping[Matrix, str] = QWEN_NAMES,
        router: str = "gate",
        router_cap: float | None = None,
        activation: Activation = SILU,
        num_identities: int = 0,
        latent: tuple[int, Module, Module] | None = None,
    ) -> None:
        num_routed = num_experts + num_identities
        _check(num_routed, routing)
        # Every rank routes for itself: as many logits as experts are cheaper than to exchange them.
        gate = Part(num_routed, unit=num_routed, is_shared=True)
        self.router = Linear(ctx, hidden_size, {router: gate}, role=Role.ROUTER)
        self.bias = None
        if bias_leaf:
            self.bias = SelectionBias(ctx, bias_leaf, num_routed, bias_shape or (num_routed,))
        size = hidden_size
        self.to_latent, self.from_latent = None, None
        if latent is not None:
            size, self.to_latent, self.from_latent = latent
        sizes = (size, intermediate_size, num_experts, routing.k)
        self.experts = Experts(ctx, *sizes, names=names, activation=activation)
        self.shared = shared
        weigh = {shared_gate: Part(1, is_shared=True)}
        self.shared_gate = (
            Linear(ctx, hidden_size, weigh, role=Role.ROUTER) if shared_gate else None
        )
        self._add_shared = ctx.ops.resolve(add_shared, ctx.spec())
        self._route = _router(ctx, num_routed, routing, self.bias)
        self._cap = None
        if router_cap is not None:
            self._cap = partial(ctx.ops.resolve(soft_cap, ctx.spec()), cap=router_cap)
        self._identities = None
        if num_identities:
            drop = ctx.ops.resolve(drop_identities, ctx.spec())
            add = ctx.ops.resolve(add_identities, ctx.spec())
            self._identities = tuple(partial(f, num_experts=num_experts) for f in (drop, add))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the layer's output. [T, D]"""
        logits_TE = self.router(x_TD)
        if self._cap is not None:
            logits_TE = self._cap(logits_TE)
        return self.add_shared(self.routed(x_TD, *self._route(logits_TE)), x_TD)

    def add_shared(self, y_TD: Tensor, x_TD: Tensor) -> Tensor:
        """Add what the shared experts, where there are any, make of a token. [T, D]"""
        if self.shared is None:
            return y_TD
        gate_T1 = None if self.shared_gate is None else self.shared_gate(x_TD)
        return self._add_shared(y_TD, self.shared(x_TD), gate_T1)

    def routed(self, x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor) -> Tensor:
        """Return what a token's own experts make of it. [T, D]"""
        if self._identities is not None:
            drop, add = self._identities
            y_TD = self.experts(x_TD, weights_Tk, drop(experts_Tk))
            return add(y_TD, x_TD, weights_Tk, experts_Tk)
        x_TL = x_TD if self.to_latent is None else self.to_latent(x_TD)
        y_TL = self.experts(x_TL, weights_Tk, experts_Tk)
        return y_TL if self.from_latent is None else self.from_latent(y_TL)


class SelectionBias(Layer):
    """What is added to experts' scores when they are chosen; kept in float32.

    Args:
        ctx: What to build with.
        leaf: Checkpoint name.
        num_experts: E.
        shape: How the checkpoint has it.
    """

    def __init__(self, ctx: Context, leaf: str, num_experts: int, shape: tuple[int, ...]) -> None:
        self._leaf, self._shape = leaf, shape
        self.values_E = torch.zeros(num_experts, device=ctx.device.torch_device)

    def leaves(self) -> Sequence[Leaf]:
        """Return the bias."""
        return [Leaf(self._leaf, self._shape, Role.BIAS)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the bias is small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy the bias."""
        self.values_E.copy_(source.read(0, source.shape[0])["weight"].flatten())

    @property
    def num_bytes(self) -> int:
        """Bytes of the bias."""
        return self.values_E.nbytes


def _router(
    ctx: Context, num_experts: int, routing: Routing, bias: SelectionBias | None
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return what makes weights and experts of logits, by the simplest op that does."""
    sized = partial(ctx.spec, num_experts=num_experts, experts_per_token=routing.k)
    if routing.is_plain and bias is None:
        plain = ctx.ops.resolve(route_topk, sized())
        return partial(plain, k=routing.k, is_normalized=routing.is_normalized)
    spec = sized(num_groups=routing.num_groups, features=routing.features)
    route = ctx.ops.resolve(route_experts, spec)
    bias_E = None if bias is None else bias.values_E
    return lambda logits_TE: route(logits_TE, bias_E, routing=routing)


def _check(num_experts: int, routing: Routing) -> None:
    size = num_experts // routing.num_groups
    if num_experts % routing.num_groups or routing.k > size * routing.groups_kept:
        raise UnsupportedError(
            f"The configuration has {num_experts} experts in {routing.num_groups} groups, of which"
            f" {routing.groups_kept} are kept, and {routing.k} experts a token.",
            remedy="Compare its config.json with the model's original.",
        )
    if routing.group_best > size:
        raise UnsupportedError(
            f"The configuration has {size} experts a group; groups are scored by their best"
            f" {routing.group_best}.",
            remedy="Compare its config.json with the model's original.",
        )
