"""Norms, activation and the preparation of queries, keys and values.

Shapes: T tokens, D features, H query heads, K key/value heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from headstock.ops import activation as activations
from headstock.ops import norm, outputs, rotary
from headstock.ops.activation_kinds import FEATURES, SILU, Activation
from headstock_xeon.kernels.attention import TAG, NativeAttention
from headstock_xeon.kernels.offers import EIGHTS, FLOAT32, Kernels, computes
from headstock_xeon.stream import as_bits, rows_of, strided

if TYPE_CHECKING:
    from headstock.ops.attention import AttentionProvider, StepBatch

ACTIVATED = replace(FLOAT32, features=FEATURES)
QUERIES = replace(FLOAT32, sizes={"head_dim": EIGHTS})
WRITTEN = replace(
    QUERIES,
    layouts=frozenset({TAG}),
    features=frozenset({rotary.NORMED_LAST, rotary.NORMED_VALUES, rotary.KEYS_AS_VALUES}),
)


class LayerKernels(Kernels):
    """What lies between the products of a layer."""

    @computes(norm.rms_norm)
    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
        """Divide each row by its root mean square, then scale. Any leading dimensions."""
        x_RD = x_TD if x_TD.dim() == 2 else x_TD.reshape(-1, x_TD.shape[-1])
        return self._norm(x_RD, None, weight_D, eps).view(x_TD.shape)

    @computes(norm.add_rms_norm)
    def add_rms_norm(
        self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Add to the residual stream, in place, and normalise the sum."""
        residual_TD = rows_of(residual_TD)
        return self._norm(x_TD, residual_TD, weight_D, eps), residual_TD

    def _norm(
        self, x_RD: Tensor, residual_RD: Tensor | None, weight_D: Tensor, eps: float
    ) -> Tensor:
        y_RD = self._stream.empty(x_RD.shape)
        rows = (*strided(x_RD), *strided(residual_RD))
        y = (y_RD, y_RD.stride(0), *y_RD.shape)
        self._stream.emit("norm", *rows, weight_D, *y, as_bits(eps))
        return y_RD

    @computes(activations.silu_and_mul, ACTIVATED)
    def silu_and_mul(self, gate_up_TG: Tensor, *, activation: Activation = SILU) -> Tensor:
        size = gate_up_TG.shape[1] // 2
        return self.activate_and_mul(
            gate_up_TG[:, :size], gate_up_TG[:, size:], activation=activation
        )

    @computes(activations.activate_and_mul, ACTIVATED)
    def activate_and_mul(
        self, gate_TF: Tensor, x_TF: Tensor, *, activation: Activation = SILU
    ) -> Tensor:
        y_TF = self._stream.empty(gate_TF.shape)
        rows = (*strided(gate_TF), *strided(x_TF))
        kind = (activation.number, *map(as_bits, activation.padded))
        self._stream.emit("activation", *rows, y_TF, *y_TF.shape, *kind)
        return y_TF

    @computes(outputs.soft_cap)
    def soft_cap(self, x_TA: Tensor, *, cap: float) -> Tensor:
        y_TA = self._stream.empty(x_TA.shape)
        self._stream.emit("cap", *strided(x_TA), y_TA, *y_TA.shape, as_bits(cap))
        return y_TA

    @computes(outputs.join_features)
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
        assert isinstance(provider, NativeAttention), f"{provider} has another layout"
        order = is_interleaved + 2 * is_normed_last + 4 * has_normed_values + 8 * takes_keys
        how = (order, q_norm_D, k_norm_D, as_bits(eps), batch.positions_T, batch.write_slots_T)
        return self._rotate(provider.pages(kv), qkv_TC, cos_sin_LC, how, (num_heads, head_dim))

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
        how = (int(is_interleaved), q_norm_D, None, as_bits(eps), positions_T, None)
        pages = (None, 0, 1, 0, head_dim)
        return self._rotate(pages, q_TC, cos_sin_LC, how, (num_heads, head_dim))

    def _rotate(
        self,
        pages: tuple[Tensor | int | None, ...],
        x_TC: Tensor,
        cos_sin_LC: Tensor | None,
        how: tuple[Tensor | int | None, ...],
        heads: tuple[int, int],
    ) -> Tensor:
        """Emit the kernel of both, which ``how`` says more of; returns queries. [T, H, D]"""
        q_THD = self._stream.empty((x_TC.shape[0], *heads))
        angles = (cos_sin_LC, 0 if cos_sin_LC is None else cos_sin_LC.shape[1])
        self._stream.emit("rotate", *pages, *strided(x_TC), *angles, *how, q_THD, *q_THD.shape[:2])
        return q_THD
