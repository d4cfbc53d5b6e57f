"""Sums, factors, gates and wide norms of features.

Shapes: T tokens, A, C features, H heads of D, G gates.
"""

from __future__ import annotations

from torch import Tensor

from headstock.ops import features, gates, wide_norm
from headstock.ops.offers import computes
from headstock_xeon.kernels.base import FLOAT32, Kernels
from headstock_xeon.stream import Word, as_bits, strided

NOTHING = (None, 0)
ONE = as_bits(1.0)


class FeatureKernels(Kernels):
    """What is done to each feature, gates on them, and norms of several heads at once."""

    @computes(features.add_features, FLOAT32)
    def add_features(self, x_TD: Tensor, y_TD: Tensor) -> Tensor:
        return self._scale(x_TD, *strided(y_TD), None, None, None)

    @computes(features.scale_features, FLOAT32)
    def scale_features(self, x_TA: Tensor, *, factor: float) -> Tensor:
        return self._scale(x_TA, *NOTHING, None, None, None, factor=as_bits(factor))

    @computes(features.weigh_features, FLOAT32)
    def weigh_features(self, x_TA: Tensor, weight_A: Tensor) -> Tensor:
        return self._scale(x_TA, *NOTHING, weight_A, None, None)

    @computes(features.weigh_and_shift, FLOAT32)
    def weigh_and_shift(self, x_TA: Tensor, weight_A: Tensor, shift_A: Tensor) -> Tensor:
        return self._scale(x_TA, shift_A, 0, weight_A, None, None)

    @computes(features.order_features, FLOAT32)
    def order_features(self, x_TA: Tensor, order_A: Tensor) -> Tensor:
        return self._like(x_TA, "columns", *strided(x_TA), order_A, None)

    @computes(features.bound_features, FLOAT32)
    def bound_features(self, x_TA: Tensor, bounds_2: Tensor) -> Tensor:
        return self._like(x_TA, "columns", *strided(x_TA), None, bounds_2)

    @computes(features.scale_by_position, FLOAT32)
    def scale_by_position(self, x_THD: Tensor, positions_T: Tensor, scale_L: Tensor) -> Tensor:
        if x_THD.stride()[1:] != (x_THD.shape[2], 1):
            x_THD = x_THD.contiguous()
        y_TA = self._scale(x_THD.flatten(1), *NOTHING, None, scale_L, positions_T)
        return y_TA.view(x_THD.shape)

    @computes(features.scale_tokens, FLOAT32)
    def scale_tokens(self, x_TA: Tensor, factors_T1: Tensor) -> Tensor:
        return self._scale(x_TA, *NOTHING, None, factors_T1.contiguous(), None)

    @computes(wide_norm.sum_squares, FLOAT32)
    def sum_squares(self, qkv_TC: Tensor, *, q_size: int, k_size: int) -> Tensor:
        sums_T2 = self._stream.empty((qkv_TC.shape[0], 2))
        self._stream.emit("squares", *strided(qkv_TC), sums_T2, qkv_TC.shape[0], q_size, k_size)
        return sums_T2

    @computes(wide_norm.norm_queries_and_keys, FLOAT32)
    def norm_queries_and_keys(
        self,
        qkv_TC: Tensor,
        squares_T2: Tensor,
        q_norm_Q: Tensor,
        k_norm_K: Tensor,
        *,
        q_width: int,
        k_width: int,
        eps: float,
    ) -> Tensor:
        assert squares_T2.is_contiguous(), "sums of squares come in rows"
        y_TC = self._stream.empty(qkv_TC.shape)
        parts = (*strided(qkv_TC), squares_T2, q_norm_Q, k_norm_K, y_TC)
        sizes = (*y_TC.shape, q_norm_Q.shape[0], k_norm_K.shape[0])
        self._stream.emit("wide_norm", *parts, *sizes, *map(as_bits, (q_width, k_width, eps)))
        return y_TC

    def _scale(self, x_TA: Tensor, *parts: Word, factor: int = ONE) -> Tensor:
        """Return x · factor · weight · table at positions + other, as far as these are there.

        ``parts`` are the other summand with its stride, the weight, the table and the positions.
        """
        return self._like(x_TA, "features", *strided(x_TA), *parts, then=(factor,))

    @computes(gates.gated_norm, FLOAT32)
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

    @computes(gates.gate_features, FLOAT32)
    def gate_features(self, x_TC: Tensor, gate_TC: Tensor) -> Tensor:
        return self._gate("gate", x_TC, gate_TC)

    @computes(gates.gate_heads, FLOAT32)
    def gate_heads(self, x_TC: Tensor, gate_TH: Tensor) -> Tensor:
        return self._gate("gate_heads", x_TC, gate_TH, gate_TH.shape[1], 0)

    @computes(gates.gate_by_softplus, FLOAT32)
    def gate_by_softplus(self, x_TC: Tensor, gate_TG: Tensor) -> Tensor:
        return self._gate("gate_heads", x_TC, gate_TG, gate_TG.shape[1], 1)

    @computes(gates.gate_by_silu, FLOAT32)
    def gate_by_silu(self, x_TC: Tensor, gate_TC: Tensor) -> Tensor:
        return self._gate("gate_by_silu", x_TC, gate_TC)

    @computes(gates.gated_group_norm, FLOAT32)
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
        return self._like(x_TC, kernel, *strided(x_TC), *strided(gate_TC), then=sizes)
