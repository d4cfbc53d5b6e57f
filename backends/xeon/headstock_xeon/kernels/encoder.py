"""What encoders have beyond decoders: norms with a shift, embeddings by place, pooling.

Shapes: T tokens, D and F features, V ids, L places, R rows, P rows pooled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from headstock.ops.activation_kinds import SILU, Activation
from headstock_xeon.stream import as_bits, rows_of

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice

KINDS = ("last", "mean", "cls")
"""``PoolKind`` of ``encoder.h``."""


class EncoderKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        kernel = device.stream.kernel
        self._norm, self._activate = kernel("layer_norm"), kernel("activate")
        self._embed, self._pool = kernel("embed"), kernel("pool")

    def layer_norm(
        self, x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float
    ) -> Tensor:
        """Take the mean from each row, divide by its deviation, scale and shift. [T, D]"""
        return self._emit_norm(rows_of(x_TD), None, weight_D, bias_D, eps)

    def add_layer_norm(
        self,
        x_TD: Tensor,
        residual_TD: Tensor,
        weight_D: Tensor,
        bias_D: Tensor | None,
        *,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """Add to the residual stream, in place, and normalise the sum. [T, D] each"""
        residual_TD = rows_of(residual_TD)
        y_TD = self._emit_norm(rows_of(x_TD), residual_TD, weight_D, bias_D, eps)
        return y_TD, residual_TD

    def _emit_norm(
        self,
        x_TD: Tensor,
        residual_TD: Tensor | None,
        weight_D: Tensor,
        bias_D: Tensor | None,
        eps: float,
    ) -> Tensor:
        y_TD = self._stream.empty(tuple(x_TD.shape))
        self._stream.hold(weight_D)
        self._stream.hold(bias_D)
        self._stream.emit(
            self._norm,
            x_TD.data_ptr(),
            x_TD.stride(0),
            0 if residual_TD is None else residual_TD.data_ptr(),
            0 if residual_TD is None else residual_TD.stride(0),
            weight_D.data_ptr(),
            0 if bias_D is None else bias_D.data_ptr(),
            y_TD.data_ptr(),
            *x_TD.shape,
            as_bits(eps),
        )
        return y_TD

    def activate(self, x_TF: Tensor, *, activation: Activation = SILU) -> Tensor:
        """Return activation(x). [T, F]"""
        x_TF = rows_of(x_TF)
        y_TF = self._stream.empty(tuple(x_TF.shape))
        self._stream.emit(
            self._activate,
            x_TF.data_ptr(),
            x_TF.stride(0),
            y_TF.data_ptr(),
            *x_TF.shape,
            activation.number,
            *(as_bits(value) for value in activation.padded),
        )
        return y_TF

    def embed_places(
        self,
        ids_T: Tensor,
        positions_T: Tensor,
        words_VD: Tensor,
        places_LD: Tensor,
        types_KD: Tensor,
        *,
        first_place: int,
    ) -> Tensor:
        """Return the sum of what ids, places and types stand for. [T, D]"""
        num_words, size = words_VD.shape
        y_TD = self._stream.empty((ids_T.shape[0], size))
        self._stream.hold(words_VD)
        self._stream.hold(places_LD)
        self._stream.hold(types_KD)
        self._stream.emit(
            self._embed,
            ids_T.data_ptr(),
            positions_T.data_ptr(),
            words_VD.data_ptr(),
            places_LD.data_ptr(),
            types_KD.data_ptr(),
            y_TD.data_ptr(),
            ids_T.shape[0],
            size,
            num_words,
            first_place,
        )
        return y_TD

    def pool_rows(
        self,
        hidden_TD: Tensor,
        query_starts_R1: Tensor,
        rows_P: Tensor,
        *,
        kind: str,
        is_normalized: bool,
    ) -> Tensor:
        """Return one vector for each of the rows that ``rows_P`` names. [P, D]"""
        hidden_TD = rows_of(hidden_TD)
        size = hidden_TD.shape[1]
        y_PD = self._stream.empty((rows_P.shape[0], size))
        self._stream.hold(rows_P)
        self._stream.emit(
            self._pool,
            hidden_TD.data_ptr(),
            hidden_TD.stride(0),
            query_starts_R1.data_ptr(),
            rows_P.data_ptr(),
            y_PD.data_ptr(),
            rows_P.shape[0],
            size,
            KINDS.index(kind),
            int(is_normalized),
            int(hidden_TD.shape[0] == query_starts_R1.shape[0] - 1),
        )
        return y_PD
