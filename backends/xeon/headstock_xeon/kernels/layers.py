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
        rows, size = gate_up_TG.shape[0], gate_up_TG.shape[1] // 2
        y_TF = self._stream.empty((rows, size))
        self._stream.emit(
            self._activation,
            gate_up_TG.data_ptr(),
            gate_up_TG.stride(0),
            y_TF.data_ptr(),
            rows,
            size,
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
    ) -> Tensor:
        """Split the fused projection, norm and rotate queries and keys, store keys and values."""
        assert isinstance(provider, NativeAttention), f"{provider} has another layout"
        qkv_TC = rows_of(qkv_TC)
        tokens = qkv_TC.shape[0]
        self._stream.hold(cos_sin_LC, q_norm_D, k_norm_D, kv, batch)
        q_THD = self._stream.empty((tokens, num_heads, head_dim))
        self._stream.emit(
            self._rotate,
            *provider.pages(kv),
            qkv_TC.data_ptr(),
            qkv_TC.stride(0),
            0 if cos_sin_LC is None else cos_sin_LC.data_ptr(),
            0 if cos_sin_LC is None else cos_sin_LC.shape[1],
            int(is_interleaved) + 2 * int(is_normed_last),
            0 if q_norm_D is None else q_norm_D.data_ptr(),
            0 if k_norm_D is None else k_norm_D.data_ptr(),
            as_bits(eps),
            batch.positions_T.data_ptr(),
            batch.write_slots_T.data_ptr(),
            q_THD.data_ptr(),
            tokens,
            num_heads,
        )
        return q_THD
