"""What encoders have beyond decoders: norms with a shift, embeddings by place, pooling.

Shapes: T tokens, D and F features, V ids, L places, R rows, P rows pooled.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from headstock.ops import activation as activations
from headstock.ops import embedding, norm, pooling
from headstock.ops.activation_kinds import FEATURES, SILU, Activation
from headstock_xeon.kernels.offers import FLOAT32, Kernels, computes
from headstock_xeon.stream import as_bits, rows_of, strided

KINDS = ("last", "mean", "cls")
"""``PoolKind`` of ``encoder.h``."""
UNGATED = replace(FLOAT32, features=FEATURES - {"clipped-swiglu", "bounded-swiglu"})


class EncoderKernels(Kernels):
    """What encoders have."""

    @computes(norm.layer_norm)
    def layer_norm(
        self, x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float
    ) -> Tensor:
        return self._norm(x_TD, None, weight_D, bias_D, eps)

    @computes(norm.add_layer_norm)
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
        return self._norm(x_TD, residual_TD, weight_D, bias_D, eps), residual_TD

    def _norm(
        self,
        x_TD: Tensor,
        residual_TD: Tensor | None,
        weight_D: Tensor,
        bias_D: Tensor | None,
        eps: float,
    ) -> Tensor:
        y_TD = self._stream.empty(x_TD.shape)
        rows = (*strided(x_TD), *strided(residual_TD))
        self._stream.emit("layer_norm", *rows, weight_D, bias_D, y_TD, *y_TD.shape, as_bits(eps))
        return y_TD

    @computes(activations.activate, UNGATED)
    def activate(self, x_TF: Tensor, *, activation: Activation = SILU) -> Tensor:
        y_TF = self._stream.empty(x_TF.shape)
        kind = (activation.number, *map(as_bits, activation.padded))
        self._stream.emit("activate", *strided(x_TF), y_TF, *y_TF.shape, *kind)
        return y_TF

    @computes(embedding.embed_places)
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
        num_words, size = words_VD.shape
        y_TD = self._stream.empty((ids_T.shape[0], size))
        parts = (ids_T, positions_T, words_VD, places_LD, types_KD, y_TD)
        self._stream.emit("embed", *parts, *y_TD.shape, num_words, first_place)
        return y_TD

    @computes(pooling.pool_rows)
    def pool_rows(
        self,
        hidden_TD: Tensor,
        query_starts_R1: Tensor,
        rows_P: Tensor,
        *,
        kind: str,
        is_normalized: bool,
    ) -> Tensor:
        y_PD = self._stream.empty((rows_P.shape[0], hidden_TD.shape[1]))
        is_one_each = hidden_TD.shape[0] == query_starts_R1.shape[0] - 1
        how = (KINDS.index(kind), int(is_normalized), int(is_one_each))
        rows = (*strided(hidden_TD), query_starts_R1, rows_P)
        self._stream.emit("pool", *rows, y_PD, *y_PD.shape, *how)
        return y_PD
