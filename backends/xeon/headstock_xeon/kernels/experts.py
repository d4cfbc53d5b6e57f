"""Mixtures of experts: choosing them, and the products of :mod:`.linear` with their weights.

Shapes: T tokens, E experts, k experts of a token, N = T · k choices, D hidden size, F features
between an expert's matrices.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headstock.ops import moe, routing
from headstock.ops.activation_kinds import FEATURES
from headstock.ops.linear import CanonicalWeight, LinearSpec
from headstock.ops.moe import BIAS, UNGATED, ExpertsSpec, Matrix
from headstock.ops.offers import computes
from headstock.ops.routing import MAX_GROUP_BEST, SQRT_SOFTPLUS, Routing
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.base import FLOAT32, Kernels
from headstock_xeon.kernels.linear import PACKED, NativeLinear
from headstock_xeon.stream import Word, as_bits, rows_of, strided

PANEL = 16
"""Output features that are packed together: each expert's begin a panel of their own."""
MAX_PARAMETERS = 2
"""Of an activation with a gate of its own: xIELU, which has none, is not taken."""
MAX_TOKENS = 512
"""Tokens at a time. Their choices' rows lie side by side between the products."""
SCORES = ("softmax", "sigmoid", SQRT_SOFTPLUS)
"""``ScoreKind`` of ``routing.h``."""
SCORED = replace(FLOAT32, features=frozenset({SQRT_SOFTPLUS}))
TAKEN = (FEATURES | {BIAS, UNGATED}) - {"xielu"}


@computes(moe.experts, *(replace(packed, features=TAKEN) for packed in PACKED))
class NativeExperts:
    """All experts of a layer in two packed weights: gate above up, and down."""

    def __init__(self, spec: ExpertsSpec, device: XeonDevice) -> None:
        self.spec = spec
        self._stream = device.stream
        size, between = spec.hidden_size, spec.intermediate_size
        self._gate_up = self._pack(device, size, spec.inner_size)
        self._down = self._pack(device, between, size)
        activation = spec.activation
        parameters = activation.padded[:MAX_PARAMETERS]
        self._activation = (activation.number, *(as_bits(value) for value in parameters))

    def _pack(self, device: XeonDevice, in_features: int, out_features: int) -> NativeLinear:
        spec = LinearSpec(
            in_features=in_features,
            out_features=self.spec.num_experts * whole_panels(out_features),
            dtype=self.spec.dtype,
            layout=self.spec.layout,
            group_size=self.spec.group_size,
            has_bias=self.spec.has_bias,
        )
        return NativeLinear(spec, device)

    def load(self, part: CanonicalWeight, expert: int, matrix: Matrix, row_begin: int) -> None:
        """Pack the canonical rows ``part``."""
        packed, first = self._place(expert, matrix)
        packed.load(part, first + row_begin)

    def load_bias(self, bias: Tensor, expert: int, matrix: Matrix, begin: int) -> None:
        """Set the bias of one of an expert's matrices. [rows]"""
        packed, first = self._place(expert, matrix)
        packed.load_bias(bias, first + begin)

    def _place(self, expert: int, matrix: Matrix) -> tuple[NativeLinear, int]:
        """Return the packed weight that has ``matrix`` of ``expert``, and its first row there."""
        if matrix == "down":
            return self._down, expert * whole_panels(self.spec.hidden_size)
        first = expert * whole_panels(self.spec.inner_size) + self.spec.above(matrix)
        return self._gate_up, first

    def __call__(self, x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor) -> Tensor:
        """Return each token's weighted sum over its experts, first choice first. [T, D]"""
        weights_Tk, experts_Tk = weights_Tk.contiguous(), experts_Tk.contiguous()
        num_tokens = x_TD.shape[0]
        y_TD = self._stream.empty((num_tokens, self.spec.hidden_size))
        self._stream.hold(self)
        for begin in range(0, num_tokens, MAX_TOKENS):
            some = slice(begin, begin + MAX_TOKENS)
            self._emit(x_TD[some], weights_Tk[some], experts_Tk[some], y_TD[some])
        return y_TD

    def _emit(self, x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor, y_TD: Tensor) -> None:
        size, inner, number = self.spec.hidden_size, self.spec.inner_size, self.spec.num_experts
        num_tokens, k = experts_Tk.shape
        choices = num_tokens * k
        rows_ND = self._stream.empty((choices, size))
        inner_NG = self._stream.empty((choices, inner))
        lists = self._stream.empty((2 * number + 1 + 2 * choices,), torch.int32)
        self._stream.emit(
            "experts",
            *(self._gate_up.handle, rows_ND, size, inner_NG, inner, choices),
            *(self._down.handle, inner_NG, inner, rows_ND, size, choices),
            *(*strided(x_TD), weights_Tk, experts_Tk, lists, y_TD),
            *(num_tokens, k, number, *self._activation),
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed storage."""
        return self._gate_up.num_bytes + self._down.num_bytes


class RoutingKernels(Kernels):
    """Which experts a token chooses, and what they count."""

    @computes(moe.route_topk, FLOAT32)
    def route_topk(
        self, logits_TE: Tensor, *, k: int, is_normalized: bool
    ) -> tuple[Tensor, Tensor]:
        chosen = self._chosen(logits_TE, k)
        sizes = (*logits_TE.shape, k)
        self._stream.emit("route", *strided(logits_TE), *chosen, *sizes, int(is_normalized))
        return chosen

    @computes(routing.route_experts, SCORED)
    def route_experts(
        self, logits_TE: Tensor, bias_E: Tensor | None, *, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        assert routing.group_best <= MAX_GROUP_BEST, f"{routing.group_best} of a group"
        return self._score(logits_TE, bias_E, routing, (None, None))

    @computes(routing.route_by_token, SCORED)
    def route_by_token(
        self, logits_TE: Tensor, ids_T: Tensor, experts_Vk: Tensor, *, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        by_id = (ids_T.contiguous(), experts_Vk.contiguous())
        return self._score(logits_TE, None, replace(routing, num_groups=1), by_id)

    def _score(
        self, logits_TE: Tensor, bias_E: Tensor | None, routing: Routing, by_id: tuple[Word, Word]
    ) -> tuple[Tensor, Tensor]:
        chosen = self._chosen(logits_TE, routing.k)
        kinds = (SCORES.index(routing.scores), int(routing.is_normalized))
        groups = (routing.num_groups, routing.groups_kept, routing.group_best)
        how = (routing.k, *kinds, *groups, as_bits(routing.factor), *by_id)
        logits = (*strided(logits_TE), bias_E)
        self._stream.emit("route_experts", *logits, *chosen, *logits_TE.shape, *how)
        return chosen

    def _chosen(self, logits_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return memory for weights and for experts. float32, int32. [T, k] each"""
        shape = (logits_TE.shape[0], k)
        return self._stream.empty(shape), self._stream.empty(shape, torch.int32)

    @computes(routing.weigh_experts, FLOAT32)
    def weigh_experts(self, weights_Tk: Tensor, experts_Tk: Tensor, scale_E: Tensor) -> Tensor:
        given = (weights_Tk.contiguous(), experts_Tk.contiguous(), scale_E)
        return self._like(weights_Tk, "weigh_experts", *given)

    @computes(routing.add_shared, FLOAT32)
    def add_shared(self, routed_TD: Tensor, shared_TD: Tensor, gate_T1: Tensor | None) -> Tensor:
        """Add the shared experts' part, in place."""
        routed_TD = rows_of(routed_TD)
        gate = (gate_T1, 0 if gate_T1 is None else gate_T1.stride(0))
        rows = (*strided(routed_TD), *strided(shared_TD))
        self._stream.emit("add_shared", *rows, *gate, *routed_TD.shape)
        return routed_TD


def whole_panels(out_features: int) -> int:
    """Return the rows that an expert's output features take up."""
    return -(-out_features // PANEL) * PANEL
