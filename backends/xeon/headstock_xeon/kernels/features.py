"""Sums, factors and wide norms of features. Shapes: T tokens, A, C features, H heads of D."""

from __future__ import annotations

from torch import Tensor

from headstock.ops import features, wide_norm
from headstock_xeon.kernels.offers import Kernels, computes
from headstock_xeon.stream import as_bits, strided

NOTHING = (None, 0)
ONE = as_bits(1.0)


class FeatureKernels(Kernels):
    """What is done to each feature, and norms of several heads at once."""

    @computes(features.add_features)
    def add_features(self, x_TD: Tensor, y_TD: Tensor) -> Tensor:
        return self._scale(x_TD, *strided(y_TD), None, None, None)

    @computes(features.scale_features)
    def scale_features(self, x_TA: Tensor, *, factor: float) -> Tensor:
        return self._scale(x_TA, *NOTHING, None, None, None, as_bits(factor))

    @computes(features.weigh_features)
    def weigh_features(self, x_TA: Tensor, weight_A: Tensor) -> Tensor:
        return self._scale(x_TA, *NOTHING, weight_A, None, None)

    @computes(features.scale_by_position)
    def scale_by_position(self, x_THD: Tensor, positions_T: Tensor, scale_L: Tensor) -> Tensor:
        if x_THD.stride()[1:] != (x_THD.shape[2], 1):
            x_THD = x_THD.contiguous()
        y_TA = self._scale(x_THD.flatten(1), *NOTHING, None, scale_L, positions_T)
        return y_TA.view(x_THD.shape)

    @computes(features.scale_tokens)
    def scale_tokens(self, x_TA: Tensor, factors_T1: Tensor) -> Tensor:
        return self._scale(x_TA, *NOTHING, None, factors_T1.contiguous(), None)

    @computes(wide_norm.sum_squares)
    def sum_squares(self, qkv_TC: Tensor, *, q_size: int, k_size: int) -> Tensor:
        sums_T2 = self._stream.empty((qkv_TC.shape[0], 2))
        self._stream.emit("squares", *strided(qkv_TC), sums_T2, qkv_TC.shape[0], q_size, k_size)
        return sums_T2

    @computes(wide_norm.norm_queries_and_keys)
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

    def _scale(
        self,
        x_TA: Tensor,
        other_TA: Tensor | None,
        other_stride: int,
        weight_A: Tensor | None,
        table_L: Tensor | None,
        positions_T: Tensor | None,
        factor: int = ONE,
    ) -> Tensor:
        """Return x · factor · weight · table at positions + other, as far as these are there."""
        y_TA = self._stream.empty(x_TA.shape)
        parts = (other_TA, other_stride, weight_A, table_L, positions_T)
        self._stream.emit("features", *strided(x_TA), *parts, y_TA, *y_TA.shape, factor)
        return y_TA
