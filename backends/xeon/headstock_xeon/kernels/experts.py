"""Mixtures of experts, with the packed weights and the products of :mod:`.linear`.

Shapes: T tokens, E experts, k experts of a token, N = T · k choices, D hidden size, F features
between an expert's matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.linear import CanonicalWeight, LinearSpec
from headstock.ops.moe import ExpertsSpec, Matrix
from headstock_xeon.kernels.linear import NativeLinear
from headstock_xeon.stream import as_bits, rows_of

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice

PANEL = 16
"""Output features that are packed together: each expert's begin a panel of their own."""
MAX_PARAMETERS = 2
"""Of an activation with a gate of its own: xIELU, which has none, is not taken."""
MAX_TOKENS = 512
"""Tokens at a time. Their choices' rows lie side by side between the products."""


class NativeExperts:
    """All experts of a layer in two packed weights: gate above up, and down."""

    def __init__(self, spec: ExpertsSpec, device: XeonDevice) -> None:
        self.spec = spec
        self._stream = device.stream
        self._experts = device.stream.kernel("experts")
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
        if matrix == "down":
            first = expert * whole_panels(self.spec.hidden_size)
            self._down.load(part, first + row_begin)
        else:
            first = expert * whole_panels(self.spec.inner_size) + self.spec.above(matrix)
            self._gate_up.load(part, first + row_begin)

    def load_bias(self, bias: Tensor, expert: int, matrix: Matrix, begin: int) -> None:
        """Set the bias of one of an expert's matrices. [rows]"""
        if matrix == "down":
            self._down.load_bias(bias, expert * whole_panels(self.spec.hidden_size) + begin)
        else:
            first = expert * whole_panels(self.spec.inner_size) + self.spec.above(matrix)
            self._gate_up.load_bias(bias, first + begin)

    def __call__(self, x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor) -> Tensor:
        """Return each token's weighted sum over its experts, first choice first. [T, D]"""
        x_TD = rows_of(x_TD)
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
        num_choices = num_tokens * k
        rows_ND = self._stream.empty((num_choices, size))
        inner_NG = self._stream.empty((num_choices, inner))
        lists = self._stream.empty((2 * number + 1 + 2 * num_choices,), torch.int32)
        rows, gated = rows_ND.data_ptr(), inner_NG.data_ptr()
        self._stream.emit(
            self._experts,
            *(self._gate_up.handle, rows, size, gated, inner, num_choices),
            *(self._down.handle, gated, inner, rows, size, num_choices),
            x_TD.data_ptr(),
            x_TD.stride(0),
            weights_Tk.data_ptr(),
            experts_Tk.data_ptr(),
            lists.data_ptr(),
            y_TD.data_ptr(),
            num_tokens,
            k,
            number,
            *self._activation,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed storage."""
        return self._gate_up.num_bytes + self._down.num_bytes


class RoutingKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        self._route = device.stream.kernel("route")

    def route_topk(
        self, logits_TE: Tensor, *, k: int, is_normalized: bool
    ) -> tuple[Tensor, Tensor]:
        """Choose the k experts with the highest logits of each token. [T, k], [T, k]"""
        logits_TE = rows_of(logits_TE)
        num_tokens, num_experts = logits_TE.shape
        weights_Tk = self._stream.empty((num_tokens, k))
        experts_Tk = self._stream.empty((num_tokens, k), torch.int32)
        self._stream.emit(
            self._route,
            logits_TE.data_ptr(),
            logits_TE.stride(0),
            weights_Tk.data_ptr(),
            experts_Tk.data_ptr(),
            num_tokens,
            num_experts,
            k,
            int(is_normalized),
        )
        return weights_Tk, experts_Tk


def whole_panels(out_features: int) -> int:
    """Return the rows that an expert's output features take up."""
    return -(-out_features // PANEL) * PANEL
