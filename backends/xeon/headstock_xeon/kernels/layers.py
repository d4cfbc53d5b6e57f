"""Norms, activation, the preparation of queries, keys and values, and what encoders have beside.

Shapes: T tokens, D and F features, H query heads, K key/value heads, V ids, L places, R rows, P
rows pooled.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from torch import Tensor

from headstock.ops import activation as activations
from headstock.ops import embedding, norm, outputs, pooling, rotary
from headstock.ops.activation_kinds import FEATURES, OF_BOTH, SILU, Activation
from headstock.ops.attention import AttentionProvider, StepBatch
from headstock.ops.offers import computes
from headstock_xeon.kernels.attention import TAG, NativeAttention
from headstock_xeon.kernels.base import EIGHTS, FLOAT32, Kernels
from headstock_xeon.stream import address, as_bits, rows_of, strided

KINDS = ("last", "mean", "cls")
"""``PoolKind`` of ``encoder.h``."""
ACTIVATED = replace(FLOAT32, features=FEATURES)
UNGATED = replace(FLOAT32, features=FEATURES - OF_BOTH)
QUERIES = replace(FLOAT32, sizes={"head_dim": EIGHTS})
WRITTEN = replace(
    QUERIES,
    page_formats=frozenset({TAG}),
    features=frozenset({rotary.NORMED_LAST, rotary.NORMED_VALUES, rotary.KEYS_AS_VALUES}),
)


class LayerKernels(Kernels):
    """What lies between the products of a layer."""

    @computes(norm.rms_norm, FLOAT32)
    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
        """Divide each row by its root mean square, then scale. Any leading dimensions."""
        x_RD = x_TD if x_TD.dim() == 2 else x_TD.reshape(-1, x_TD.shape[-1])
        return self._norm(x_RD, None, weight_D, eps).view(x_TD.shape)

    @computes(norm.add_rms_norm, FLOAT32)
    def add_rms_norm(
        self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Add to the residual stream, in place, and normalise the sum."""
        residual_TD, between = strided(residual_TD)
        y_TD = self._norm(x_TD, residual_TD, weight_D, eps, between=between)
        return y_TD, residual_TD

    def _norm(
        self,
        x_RD: Tensor,
        residual_RD: Tensor | None,
        weight_D: Tensor,
        eps: float,
        between: int = 0,
    ) -> Tensor:
        """Emit the kernel of both; rows of the residual stream are ``between`` numbers apart."""
        rows, size = x_RD.shape
        x_RD, step = strided(x_RD)
        y_RD = self._stream.empty((rows, size))
        given = (x_RD, residual_RD, weight_D, y_RD)
        inputs = (x_RD.data_ptr(), step, address(residual_RD), between, weight_D.data_ptr())
        sizes = (y_RD.data_ptr(), size, rows, size, as_bits(eps))
        self._stream.emit_words("norm", given, *inputs, *sizes)
        return y_RD

    @computes(activations.silu_and_mul, ACTIVATED)
    def silu_and_mul(self, gate_up_TG: Tensor, *, activation: Activation = SILU) -> Tensor:
        rows, size = gate_up_TG.shape[0], gate_up_TG.shape[1] // 2
        gate_up_TG, between = strided(gate_up_TG)
        y_TF = self._stream.empty((rows, size))
        gate = gate_up_TG.data_ptr()
        halves = (gate, between, gate + 4 * size, between)
        how = (y_TF.data_ptr(), rows, size, *words_of(activation))
        self._stream.emit_words("activation", (gate_up_TG, y_TF), *halves, *how)
        return y_TF

    @computes(activations.activate_and_mul, ACTIVATED)
    def activate_and_mul(
        self, gate_TF: Tensor, x_TF: Tensor, *, activation: Activation = SILU
    ) -> Tensor:
        rows, kind = (*strided(gate_TF), *strided(x_TF)), words_of(activation)
        return self._like(gate_TF, "activation", *rows, then=kind)

    @computes(outputs.soft_cap, FLOAT32)
    def soft_cap(self, x_TA: Tensor, *, cap: float) -> Tensor:
        return self._like(x_TA, "cap", *strided(x_TA), then=(as_bits(cap),))

    @computes(outputs.join_features, FLOAT32)
    def join_features(self, left_TA: Tensor, right_TB: Tensor) -> Tensor:
        rows, width = left_TA.shape
        joined_TC = self._stream.empty((rows, width + right_TB.shape[1]))
        for part, into in ((left_TA, joined_TC), (right_TB, joined_TC[:, width:])):
            part = rows_of(part)
            strides = (part.stride(0) * 4, into.stride(0) * 4)
            self._stream.emit("copy", part, strides[0], into, strides[1], rows, part.shape[1] * 4)
        return joined_TC

    @computes(rotary.rotate_and_write, WRITTEN)
    def rotate_and_write(
        self,
        qkv_TC: Tensor,
        cos_sin_LC: Tensor | None,
        q_norm_D: Tensor | None,
        k_norm_D: Tensor | None,
        kv: Tensor,
        batch: StepBatch,
        *,
        provider: AttentionProvider,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        is_interleaved: bool,
        is_normed_last: bool = False,
        has_normed_values: bool = False,
        takes_keys: bool = False,
    ) -> Tensor:
        assert isinstance(provider, NativeAttention), f"{provider} has another page format"
        order = is_interleaved + 2 * is_normed_last + 4 * has_normed_values + 8 * takes_keys
        norms, places = (q_norm_D, k_norm_D), (batch.positions_T, batch.write_slots_T)
        heads = (num_heads, head_dim)
        return self._rotate(
            kv, provider.geometry, qkv_TC, cos_sin_LC, order, norms, eps, places, heads
        )

    @computes(rotary.rotate_queries, QUERIES)
    def rotate_queries(
        self,
        q_TC: Tensor,
        cos_sin_LC: Tensor | None,
        q_norm_D: Tensor | None,
        positions_T: Tensor,
        *,
        num_heads: int,
        head_dim: int,
        eps: float,
        is_interleaved: bool,
    ) -> Tensor:
        geometry, order = (0, 1, 0, head_dim), int(is_interleaved)
        norms, places, heads = (q_norm_D, None), (positions_T, None), (num_heads, head_dim)
        return self._rotate(None, geometry, q_TC, cos_sin_LC, order, norms, eps, places, heads)

    def _rotate(
        self,
        kv: Tensor | None,
        geometry: tuple[int, ...],
        x_TC: Tensor,
        cos_sin_LC: Tensor | None,
        order: int,
        norms: tuple[Tensor | None, Tensor | None],
        eps: float,
        places: tuple[Tensor, Tensor | None],
        heads: tuple[int, int],
    ) -> Tensor:
        """Emit the kernel of both; returns queries. [T, H, D]"""
        x_TC, between = strided(x_TC)
        count = x_TC.shape[0]
        q_THD = self._stream.empty((count, *heads))
        (q_norm_D, k_norm_D), (positions_T, write_slots_T) = norms, places
        given = (kv, x_TC, cos_sin_LC, *norms, *places, q_THD)
        at_kv, at_angles, at_slots = address(kv), address(cos_sin_LC), address(write_slots_T)
        self._stream.emit_words(
            "rotate",
            given,
            *(at_kv, *geometry, x_TC.data_ptr(), between, at_angles),
            *(0 if cos_sin_LC is None else cos_sin_LC.shape[1], order),
            *(address(q_norm_D), address(k_norm_D), as_bits(eps)),
            *(positions_T.data_ptr(), at_slots, q_THD.data_ptr(), count, heads[0]),
        )
        return q_THD

    @computes(norm.layer_norm, FLOAT32)
    def layer_norm(
        self, x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float
    ) -> Tensor:
        return self._layer_norm(x_TD, None, weight_D, bias_D, eps)

    @computes(norm.add_layer_norm, FLOAT32)
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
        return self._layer_norm(x_TD, residual_TD, weight_D, bias_D, eps), residual_TD

    def _layer_norm(
        self,
        x_TD: Tensor,
        residual_TD: Tensor | None,
        weight_D: Tensor,
        bias_D: Tensor | None,
        eps: float,
    ) -> Tensor:
        given = (*strided(x_TD), *strided(residual_TD), weight_D, bias_D)
        return self._like(x_TD, "layer_norm", *given, then=(as_bits(eps),))

    @computes(activations.activate, UNGATED)
    def activate(self, x_TF: Tensor, *, activation: Activation = SILU) -> Tensor:
        return self._like(x_TF, "activate", *strided(x_TF), then=words_of(activation))

    @computes(embedding.embed_places, FLOAT32)
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

    @computes(pooling.pool_rows, FLOAT32)
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

    @computes(pooling.normalize_vectors, FLOAT32)
    def normalize_vectors(self, vectors_PD: Tensor) -> Tensor:
        how = (KINDS.index("last"), 1, 1)
        return self._like(vectors_PD, "pool", *strided(vectors_PD), None, None, then=how)

    @computes(outputs.as_float32, FLOAT32)
    def as_float32(self, x_TA: Tensor) -> Tensor:
        """Return ``x_TA``, which is in float32 here."""
        return x_TA


@cache
def words_of(activation: Activation) -> tuple[int, ...]:
    """Return what instructions say of an activation: its number and parameters."""
    return (activation.number, *map(as_bits, activation.padded))
