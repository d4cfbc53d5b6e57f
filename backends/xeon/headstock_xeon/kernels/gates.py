"""Gates on what attention and state spaces give, and their norms.

Shapes: as in :mod:`headstock.ops.gates`.
"""

from __future__ import annotations

from torch import Tensor

from headstock.ops import gates
from headstock_xeon.kernels.offers import Kernels, computes
from headstock_xeon.stream import as_bits, strided


class GateKernels(Kernels):
    """Products with what an activation makes of a gate."""

    @computes(gates.gated_norm)
    def gated_norm(
        self, x_THD: Tensor, gate_THD: Tensor, weight_D: Tensor, *, eps: float
    ) -> Tensor:
        num_tokens, heads, size = x_THD.shape
        if gate_THD.stride()[1:] != (size, 1):
            gate_THD = gate_THD.contiguous()
        y_THD = self._stream.empty(x_THD.shape)
        given = (x_THD.contiguous(), gate_THD, gate_THD.stride(0), weight_D, y_THD)
        self._stream.emit("gated_norm", *given, num_tokens * heads, heads, size, as_bits(eps))
        return y_THD

    @computes(gates.gate_features)
    def gate_features(self, x_TC: Tensor, gate_TC: Tensor) -> Tensor:
        return self._gate("gate", x_TC, gate_TC)

    @computes(gates.gate_heads)
    def gate_heads(self, x_TC: Tensor, gate_TH: Tensor) -> Tensor:
        return self._gate("gate_heads", x_TC, gate_TH, gate_TH.shape[1], 0)

    @computes(gates.gate_by_softplus)
    def gate_by_softplus(self, x_TC: Tensor, gate_TG: Tensor) -> Tensor:
        return self._gate("gate_heads", x_TC, gate_TG, gate_TG.shape[1], 1)

    @computes(gates.gate_by_silu)
    def gate_by_silu(self, x_TC: Tensor, gate_TC: Tensor) -> Tensor:
        return self._gate("gate_by_silu", x_TC, gate_TC)

    @computes(gates.gated_group_norm)
    def gated_group_norm(
        self,
        x_TC: Tensor,
        gate_TC: Tensor,
        weight_C: Tensor,
        *,
        num_groups: int,
        eps: float,
        is_gated_first: bool,
    ) -> Tensor:
        num_tokens, size = x_TC.shape
        y_TC = self._stream.empty(x_TC.shape)
        given = (*strided(x_TC), *strided(gate_TC), weight_C, y_TC)
        how = (num_tokens, num_groups, size // num_groups, as_bits(eps), int(is_gated_first))
        self._stream.emit("gated_group_norm", *given, *how)
        return y_TC

    def _gate(self, kernel: str, x_TC: Tensor, gate_TC: Tensor, *sizes: int) -> Tensor:
        y_TC = self._stream.empty(x_TC.shape)
        rows = (*strided(x_TC), *strided(gate_TC))
        self._stream.emit(kernel, *rows, y_TC, *y_TC.shape, *sizes)
        return y_TC
