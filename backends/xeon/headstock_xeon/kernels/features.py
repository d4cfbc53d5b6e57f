"""Sums, factors and wide norms of features. Shapes: T tokens, A, C features, H heads of D."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from headstock_xeon.stream import as_bits, rows_of

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice


class FeatureKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        kernel = device.stream.kernel
        self._kernel = kernel("features")
        self._squares, self._wide_norm = kernel("squares"), kernel("wide_norm")

    def add_features(self, x_TD: Tensor, y_TD: Tensor) -> Tensor:
        """Return the sum. [T, D]"""
        return self._emit(x_TD, other_TA=rows_of(y_TD))

    def scale_features(self, x_TA: Tensor, *, factor: float) -> Tensor:
        """Return factor · x. [T, A]"""
        return self._emit(x_TA, factor=factor)

    def weigh_features(self, x_TA: Tensor, weight_A: Tensor) -> Tensor:
        """Multiply each feature by its weight. [T, A]"""
        return self._emit(x_TA, weight_A=weight_A)

    def scale_by_position(self, x_THD: Tensor, positions_T: Tensor, scale_L: Tensor) -> Tensor:
        """Multiply each token's heads by what the table has for its position. [T, H, D]"""
        if x_THD.stride()[1:] != (x_THD.shape[2], 1):
            x_THD = x_THD.contiguous()
        y_TA = self._emit(x_THD.flatten(1), table_L=scale_L, positions_T=positions_T)
        return y_TA.view(x_THD.shape)

    def scale_tokens(self, x_TA: Tensor, factors_T1: Tensor) -> Tensor:
        """Multiply each token's features by its factor. [T, A]"""
        return self._emit(x_TA, table_L=factors_T1.contiguous())

    def sum_squares(self, qkv_TC: Tensor, *, q_size: int, k_size: int) -> Tensor:
        """Return the sums of the squares of each token's queries and of its keys. [T, 2]"""
        qkv_TC = rows_of(qkv_TC)
        sums_T2 = self._stream.empty((qkv_TC.shape[0], 2))
        self._stream.emit(
            self._squares,
            qkv_TC.data_ptr(),
            qkv_TC.stride(0),
            sums_T2.data_ptr(),
            qkv_TC.shape[0],
            q_size,
            k_size,
        )
        return sums_T2

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
        """Divide queries and keys by their root mean squares, and scale them. [T, C]"""
        qkv_TC = rows_of(qkv_TC)
        assert squares_T2.is_contiguous(), "sums of squares come in rows"
        self._stream.hold(q_norm_Q, k_norm_K)
        y_TC = self._stream.empty(tuple(qkv_TC.shape))
        self._stream.emit(
            self._wide_norm,
            qkv_TC.data_ptr(),
            qkv_TC.stride(0),
            squares_T2.data_ptr(),
            q_norm_Q.data_ptr(),
            k_norm_K.data_ptr(),
            y_TC.data_ptr(),
            *qkv_TC.shape,
            q_norm_Q.shape[0],
            k_norm_K.shape[0],
            as_bits(q_width),
            as_bits(k_width),
            as_bits(eps),
        )
        return y_TC

    def _emit(
        self,
        x_TA: Tensor,
        *,
        other_TA: Tensor | None = None,
        weight_A: Tensor | None = None,
        table_L: Tensor | None = None,
        positions_T: Tensor | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        x_TA = rows_of(x_TA)
        y_TA = self._stream.empty(tuple(x_TA.shape))
        self._stream.hold(weight_A, table_L, positions_T)
        self._stream.emit(
            self._kernel,
            x_TA.data_ptr(),
            x_TA.stride(0),
            *((0, 0) if other_TA is None else (other_TA.data_ptr(), other_TA.stride(0))),
            *(0 if part is None else part.data_ptr() for part in (weight_A, table_L, positions_T)),
            y_TA.data_ptr(),
            *x_TA.shape,
            as_bits(factor),
        )
        return y_TA
