"""Norms, activation and the preparation of queries, keys and values.

Shapes: T tokens, D features, H query heads, K key/value heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from headstock.ops.activation_kinds import SILU, Activation
from headstock_xeon.kernels.attention import NativeAttention
from headstock_xeon.stream import as_bits, rows_of

if TYPE_CHECKING:
    from headstock.ops.attention import AttentionProvider, StepBatch
    from headstock_xeon.device import XeonDevice


class LayerKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        kernel = device.stream.kernel
        self._norm, self._activation = kernel("norm"), kernel("activation")
        self._rotate, self._copy, self._cap = kernel("rotate"), kernel("copy"), kernel("cap")

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
        """Divide each row by its root mean square, then scale. Any leading dimensions."""
        size = x_TD.shape[-1]
        x_RD = rows_of(x_TD if x_TD.dim() == 2 else x_TD.reshape(-1, size))
        y_RD = self._stream.empty(tuple(x_RD.shape))
        self._emit_norm(x_RD, None, weight_D, y_RD, eps)
        return y_RD.view(x_TD.shape)

    def add_rms_norm(
        self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Add to the residual stream, in place, and normalise the sum."""
        x_TD, residual_TD = rows_of(x_TD), rows_of(residual_TD)
        y_TD = self._stream.empty(tuple(x_TD.shape))
        self._emit_norm(x_TD, residual_TD, weight_D, y_TD, eps)
        return y_TD, residual_TD

    def _emit_norm(
        self, x_RD: Tensor, residual_RD: Tensor | None, weight_D: Tensor, y_RD: Tensor, eps: float
    ) -> None:
        self._stream.hold(weight_D)
        self._stream.emit(
            self._norm,
            x_RD.data_ptr(),
            x_RD.stride(0),
            0 if residual_RD is None else residual_RD.data_ptr(),
            0 if residual_RD is None else residual_RD.stride(0),
            weight_D.data_ptr(),
            y_RD.data_ptr(),
            y_RD.stride(0),
            *x_RD.shape,
            as_bits(eps),
        )

    def silu_and_mul(self, gate_up_TG: Tensor, *, activation: Activation = SILU) -> Tensor:
        """Return activation(gate) * up, where gate and up are the halves of each row."""
        gate_up_TG = rows_of(gate_up_TG)
        size = gate_up_TG.shape[1] // 2
        return self._join(gate_up_TG[:, :size], gate_up_TG[:, size:], activation)

    def activate_and_mul(
        self, gate_TF: Tensor, x_TF: Tensor, *, activation: Activation = SILU
    ) -> Tensor:
        """Return activation(gate) * x."""
        return self._join(rows_of(gate_TF), rows_of(x_TF), activation)

    def _join(self, gate_TF: Tensor, up_TF: Tensor, activation: Activation) -> Tensor:
        y_TF = self._stream.empty(tuple(gate_TF.shape))
        self._stream.emit(
            self._activation,
            gate_TF.data_ptr(),
            gate_TF.stride(0),
            up_TF.data_ptr(),
            up_TF.stride(0),
            y_TF.data_ptr(),
            *gate_TF.shape,
            activation.number,
            *(as_bits(value) for value in activation.padded),
        )
        return y_TF

    def soft_cap(self, x_TA: Tensor, *, cap: float) -> Tensor:
        """Return cap * tanh(x / cap)."""
        x_TA = rows_of(x_TA)
        y_TA = self._stream.empty(tuple(x_TA.shape))
        self._stream.emit(
            self._cap,
            x_TA.data_ptr(),
            x_TA.stride(0),
            y_TA.data_ptr(),
            *x_TA.shape,
            as_bits(cap),
        )
        return y_TA

    def join_features(self, left_TA: Tensor, right_TB: Tensor) -> Tensor:
        """Return both side by side. [T, A + B]"""
        left_TA, right_TB = rows_of(left_TA), rows_of(right_TB)
        rows, width = left_TA.shape
        joined_TC = self._stream.empty((rows, width + right_TB.shape[1]))
        for part, into in ((left_TA, joined_TC), (right_TB, joined_TC[:, width:])):
            self._stream.emit(
                self._copy,
                part.data_ptr(),
                part.stride(0) * 4,
                into.data_ptr(),
                into.stride(0) * 4,
                rows,
                part.shape[1] * 4,
            )
        return joined_TC

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
        """Split the fused projection, norm and rotate queries and keys, store keys and values."""
        assert isinstance(provider, NativeAttention), f"{provider} has another layout"
        self._stream.hold(k_norm_D, kv, batch)
        order = 2 * is_normed_last + 4 * has_normed_values + 8 * takes_keys
        return self._emit_rotation(
            provider.pages(kv),
            qkv_TC,
            cos_sin_LC,
            int(is_interleaved) + order,
            (q_norm_D, k_norm_D),
            eps,
            (batch.positions_T, batch.write_slots_T),
            (num_heads, head_dim),
        )

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
        """Norm and rotate queries; nothing is stored."""
        self._stream.hold(positions_T)
        return self._emit_rotation(
            (0, 0, 1, 0, head_dim),
            q_TC,
            cos_sin_LC,
            int(is_interleaved),
            (q_norm_D, None),
            eps,
            (positions_T, None),
            (num_heads, head_dim),
        )

    def _emit_rotation(
        self,
        pages: tuple[int, ...],
        x_TC: Tensor,
        cos_sin_LC: Tensor | None,
        order: int,
        norms: tuple[Tensor | None, Tensor | None],
        eps: float,
        places: tuple[Tensor, Tensor | None],
        heads: tuple[int, int],
    ) -> Tensor:
        """Emit the kernel of both, which ``order`` says more of; returns queries. [T, H, D]"""
        x_TC = rows_of(x_TC)
        tokens, (num_heads, head_dim) = x_TC.shape[0], heads
        self._stream.hold(cos_sin_LC, norms[0])
        q_THD = self._stream.empty((tokens, num_heads, head_dim))
        self._stream.emit(
            self._rotate,
            *pages,
            x_TC.data_ptr(),
            x_TC.stride(0),
            0 if cos_sin_LC is None else cos_sin_LC.data_ptr(),
            0 if cos_sin_LC is None else cos_sin_LC.shape[1],
            order,
            *(0 if norm is None else norm.data_ptr() for norm in norms),
            as_bits(eps),
            *(0 if place is None else place.data_ptr() for place in places),
            q_THD.data_ptr(),
            tokens,
            num_heads,
        )
        return q_THD
