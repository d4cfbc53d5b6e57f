"""Choosing experts by scores, bias and groups, and adding what shared experts make.

Shapes: T tokens, E experts, k experts of a token, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.routing import MAX_GROUP_BEST, Routing
from headstock_xeon.stream import as_bits, rows_of

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice


class ScoreKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        self._route = device.stream.kernel("route_experts")
        self._add = device.stream.kernel("add_shared")
        self._weigh = device.stream.kernel("weigh_experts")

    def route_experts(
        self, logits_TE: Tensor, bias_E: Tensor | None, *, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        """Choose experts by biased scores within the best groups. [T, k], [T, k]"""
        assert routing.group_best <= MAX_GROUP_BEST, f"{routing.group_best} of a group"
        logits_TE = rows_of(logits_TE)
        num_tokens, num_experts = logits_TE.shape
        weights_Tk = self._stream.empty((num_tokens, routing.k))
        experts_Tk = self._stream.empty((num_tokens, routing.k), torch.int32)
        self._stream.hold(bias_E)
        self._stream.emit(
            self._route,
            logits_TE.data_ptr(),
            logits_TE.stride(0),
            0 if bias_E is None else bias_E.data_ptr(),
            weights_Tk.data_ptr(),
            experts_Tk.data_ptr(),
            num_tokens,
            num_experts,
            routing.k,
            int(routing.scores == "sigmoid"),
            int(routing.is_normalized),
            routing.num_groups,
            routing.groups_kept,
            routing.group_best,
            as_bits(routing.factor),
        )
        return weights_Tk, experts_Tk

    def weigh_experts(self, weights_Tk: Tensor, experts_Tk: Tensor, scale_E: Tensor) -> Tensor:
        """Multiply weights by their experts' scales. [T, k]"""
        weights_Tk, experts_Tk = weights_Tk.contiguous(), experts_Tk.contiguous()
        y_Tk = self._stream.empty(tuple(weights_Tk.shape))
        self._stream.hold(scale_E)
        self._stream.emit(
            self._weigh,
            weights_Tk.data_ptr(),
            experts_Tk.data_ptr(),
            scale_E.data_ptr(),
            y_Tk.data_ptr(),
            *weights_Tk.shape,
        )
        return y_Tk

    def add_shared(self, routed_TD: Tensor, shared_TD: Tensor, gate_T1: Tensor | None) -> Tensor:
        """Add the shared experts' part, in place."""
        routed_TD, shared_TD = rows_of(routed_TD), rows_of(shared_TD)
        self._stream.emit(
            self._add,
            routed_TD.data_ptr(),
            routed_TD.stride(0),
            shared_TD.data_ptr(),
            shared_TD.stride(0),
            0 if gate_T1 is None else gate_T1.data_ptr(),
            0 if gate_T1 is None else gate_T1.stride(0),
            *routed_TD.shape,
        )
        return routed_TD
