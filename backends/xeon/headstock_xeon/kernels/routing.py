"""Choosing experts, by logits alone or by scores, bias and groups, and adding shared experts.

Shapes: T tokens, E experts, k experts of a token, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops import moe, routing
from headstock.ops.routing import MAX_GROUP_BEST, Routing
from headstock_xeon.kernels.offers import Kernels, computes
from headstock_xeon.stream import as_bits, rows_of, strided


class RoutingKernels(Kernels):
    """Which experts a token chooses, and what they count."""

    @computes(moe.route_topk)
    def route_topk(
        self, logits_TE: Tensor, *, k: int, is_normalized: bool
    ) -> tuple[Tensor, Tensor]:
        chosen = self._chosen(logits_TE, k)
        sizes = (*logits_TE.shape, k)
        self._stream.emit("route", *strided(logits_TE), *chosen, *sizes, int(is_normalized))
        return chosen

    @computes(routing.route_experts)
    def route_experts(
        self, logits_TE: Tensor, bias_E: Tensor | None, *, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        assert routing.group_best <= MAX_GROUP_BEST, f"{routing.group_best} of a group"
        chosen = self._chosen(logits_TE, routing.k)
        kinds = (int(routing.scores == "sigmoid"), int(routing.is_normalized))
        groups = (routing.num_groups, routing.groups_kept, routing.group_best)
        how = (routing.k, *kinds, *groups, as_bits(routing.factor))
        logits = (*strided(logits_TE), bias_E)
        self._stream.emit("route_experts", *logits, *chosen, *logits_TE.shape, *how)
        return chosen

    def _chosen(self, logits_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return memory for weights and for experts. float32, int32. [T, k] each"""
        shape = (logits_TE.shape[0], k)
        return self._stream.empty(shape), self._stream.empty(shape, torch.int32)

    @computes(routing.weigh_experts)
    def weigh_experts(self, weights_Tk: Tensor, experts_Tk: Tensor, scale_E: Tensor) -> Tensor:
        y_Tk = self._stream.empty(weights_Tk.shape)
        given = (weights_Tk.contiguous(), experts_Tk.contiguous(), scale_E)
        self._stream.emit("weigh_experts", *given, y_Tk, *y_Tk.shape)
        return y_Tk

    @computes(routing.add_shared)
    def add_shared(self, routed_TD: Tensor, shared_TD: Tensor, gate_T1: Tensor | None) -> Tensor:
        """Add the shared experts' part, in place."""
        routed_TD = rows_of(routed_TD)
        gate = (gate_T1, 0 if gate_T1 is None else gate_T1.stride(0))
        rows = (*strided(routed_TD), *strided(shared_TD))
        self._stream.emit("add_shared", *rows, *gate, *routed_TD.shape)
        return routed_TD
