"""Streams of hidden states, features of which the highest count, and identities among experts.

Shapes: T tokens, A streams of D, C = A D, F features, k experts of a token.
"""

from __future__ import annotations

from torch import Tensor

from headstock.ops import embedding, routing, sparse, streams
from headstock.ops.moe import NO_EXPERT
from headstock.ops.offers import computes
from headstock_xeon.kernels.base import FLOAT32, Kernels
from headstock_xeon.stream import Word, as_bits, strided


class StreamKernels(Kernels):
    """What Gemma 3n and LongCat have beyond other models."""

    @computes(streams.predict_streams, FLOAT32)
    def predict_streams(self, x_TC: Tensor, coefs_TB: Tensor, *, num_streams: int) -> Tensor:
        given = (*strided(x_TC), *strided(coefs_TB))
        return self._streams("predict", x_TC, given, x_TC.shape[1] // num_streams)

    @computes(streams.correct_streams, FLOAT32)
    def correct_streams(self, x_TC: Tensor, computed_TD: Tensor, coefs_TA: Tensor) -> Tensor:
        given = (*strided(x_TC), *strided(computed_TD), *strided(coefs_TA))
        return self._streams("add_streams", x_TC, given, computed_TD.shape[1])

    @computes(streams.add_to_others, FLOAT32)
    def add_to_others(self, x_TC: Tensor, y_TD: Tensor) -> Tensor:
        given = (*strided(x_TC), *strided(y_TD), None, 0)
        return self._streams("add_streams", x_TC, given, y_TD.shape[1])

    @computes(streams.match_magnitudes, FLOAT32)
    def match_magnitudes(self, x_TC: Tensor, like_TD: Tensor) -> Tensor:
        given = (*strided(x_TC), *strided(like_TD))
        least = as_bits(streams.LEAST_SQUARE)
        return self._streams("match", x_TC, given, like_TD.shape[1], least)

    def _streams(
        self, kernel: str, x_TC: Tensor, given: tuple[Word, ...], size: int, *then: int
    ) -> Tensor:
        num_tokens, all_features = x_TC.shape
        y_TC = self._stream.empty((num_tokens, all_features))
        self._stream.emit(kernel, *given, y_TC, num_tokens, all_features // size, size, *then)
        return y_TC

    @computes(streams.mean_of_streams, FLOAT32)
    def mean_of_streams(self, x_TC: Tensor, *, num_streams: int) -> Tensor:
        num_tokens, size = x_TC.shape[0], x_TC.shape[1] // num_streams
        y_TD = self._stream.empty((num_tokens, size))
        self._stream.emit("mean", *strided(x_TC), y_TD, num_tokens, num_streams, size)
        return y_TD

    @computes(sparse.sum_moments, FLOAT32)
    def sum_moments(self, x_TF: Tensor) -> Tensor:
        sums_T2 = self._stream.empty((x_TF.shape[0], 2))
        self._stream.emit("moments", *strided(x_TF), sums_T2, *x_TF.shape)
        return sums_T2

    @computes(sparse.keep_above, FLOAT32)
    def keep_above(self, x_TF: Tensor, sums_T2: Tensor, *, width: int, deviations: float) -> Tensor:
        given = (*strided(x_TF), sums_T2.contiguous())
        return self._like(x_TF, "keep_above", *given, then=(width, as_bits(deviations)))

    @computes(embedding.known_ids, FLOAT32)
    def known_ids(self, ids_T: Tensor, *, size: int) -> Tensor:
        return self._replace(ids_T, size, 0)

    @computes(embedding.put_rows, FLOAT32)
    def put_rows(self, x_TD: Tensor, ids_T: Tensor, rows_KD: Tensor, *, first: int) -> Tensor:
        given = (*strided(x_TD), ids_T.contiguous(), rows_KD.contiguous())
        return self._like(x_TD, "put_rows", *given, then=(first, rows_KD.shape[0]))

    @computes(routing.drop_identities, FLOAT32)
    def drop_identities(self, experts_Tk: Tensor, *, num_experts: int) -> Tensor:
        return self._replace(experts_Tk, num_experts, NO_EXPERT)

    def _replace(self, ids: Tensor, limit: int, fill: int) -> Tensor:
        ids = ids.contiguous()
        y = self._stream.empty(tuple(ids.shape), ids.dtype)
        self._stream.emit("replace", ids, y, ids.numel(), ids.itemsize, limit, fill)
        return y

    @computes(routing.add_identities, FLOAT32)
    def add_identities(
        self,
        routed_TD: Tensor,
        x_TD: Tensor,
        weights_Tk: Tensor,
        experts_Tk: Tensor,
        *,
        num_experts: int,
    ) -> Tensor:
        given = (*strided(routed_TD), *strided(x_TD))
        chosen = (weights_Tk.contiguous(), experts_Tk.contiguous())
        sizes = (experts_Tk.shape[1], num_experts)
        return self._like(x_TD, "identities", *given, *chosen, then=sizes)
