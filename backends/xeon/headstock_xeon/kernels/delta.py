"""Linear attention by the gated delta rule, natively, and the gates on attention's output.

Shapes: as in :mod:`headstock.ops.linear_attention`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.attention import KVLayout, StepBatch
from headstock.ops.linear_attention import DeltaWeights, LinearAttentionSpec
from headstock_xeon.stream import as_bits, rows_of

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice

STATE_TAG = "state-inputs-vkd"
"""As the reference has it: inputs of the convolution, then the matrices."""


class NativeLinearAttention:
    """The gated delta rule after a causal convolution, token by token, for one spec."""

    def __init__(self, spec: LinearAttentionSpec, device: XeonDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        self.layout = KVLayout(tag=STATE_TAG, page_sizes=(1,), dtype=torch.float32)
        self._stream = device.stream
        self._delta = device.stream.kernel("delta")

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """Return [pages, numbers of a state]."""
        return (num_pages, self.spec.state_size)

    def plan(self, batch: StepBatch) -> None:
        """Check that the step is not larger than was said."""
        assert batch.num_tokens <= self.spec.max_tokens, f"{batch.num_tokens} tokens"
        assert batch.num_rows <= self.spec.max_rows, f"{batch.num_rows} rows"

    def read(self, kv: Tensor, pages_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return what pages hold. [R, W - 1, C] and [R, V, Dk, Dv]"""
        spec = self.spec
        found_RX = kv.index_select(0, pages_R.long())
        inputs_RX, matrix_RX = found_RX.tensor_split((spec.inputs_size,), dim=1)
        shape = (spec.num_value_heads, spec.key_size, spec.value_size)
        return inputs_RX.unflatten(1, (-1, spec.conv_size)), matrix_RX.unflatten(1, shape)

    def run(
        self,
        qkv_TC: Tensor,
        b_TV: Tensor,
        a_TG: Tensor,
        weights: DeltaWeights,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """Convolve, update the rows' states and read them. [T, V, Dv]"""
        spec, stream = self.spec, self._stream
        qkv_TC, b_TV, a_TG = rows_of(qkv_TC), rows_of(b_TV), rows_of(a_TG)
        num_tokens = qkv_TC.shape[0]
        mixed_TC = stream.empty((num_tokens, spec.conv_size))
        y_TVd = stream.empty((num_tokens, spec.num_value_heads, spec.value_size))
        stream.hold(kv, batch, weights)
        stream.emit(
            self._delta,
            qkv_TC.data_ptr(),
            qkv_TC.stride(0),
            b_TV.data_ptr(),
            b_TV.stride(0),
            a_TG.data_ptr(),
            a_TG.stride(0),
            weights.conv_CW.data_ptr(),
            weights.decay_V.data_ptr(),
            weights.bias_G.data_ptr(),
            kv.data_ptr(),
            batch.page_table_RP.data_ptr(),
            batch.page_table_RP.stride(0),
            batch.query_starts_R1.data_ptr(),
            batch.kv_lengths_R.data_ptr(),
            mixed_TC.data_ptr(),
            y_TVd.data_ptr(),
            batch.num_rows,
            spec.num_key_heads,
            spec.num_value_heads,
            spec.key_size,
            spec.value_size,
            spec.kernel_size,
            int(spec.decays_by_channel),
        )
        return y_TVd


class GateKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        kernel = device.stream.kernel
        self._norm, self._group_norm = kernel("gated_norm"), kernel("gated_group_norm")
        self._gate, self._silu = kernel("gate"), kernel("gate_by_silu")
        self._heads = kernel("gate_heads")

    def gated_norm(
        self, x_THD: Tensor, gate_THD: Tensor, weight_D: Tensor, *, eps: float
    ) -> Tensor:
        """Normalise each head, then multiply by silu(gate)."""
        x_THD = x_THD.contiguous()
        num_tokens, heads, size = x_THD.shape
        if gate_THD.stride()[1:] != (size, 1):
            gate_THD = gate_THD.contiguous()
        y_THD = self._stream.empty((num_tokens, heads, size))
        self._stream.hold(weight_D)
        self._stream.emit(
            self._norm,
            x_THD.data_ptr(),
            gate_THD.data_ptr(),
            gate_THD.stride(0),
            weight_D.data_ptr(),
            y_THD.data_ptr(),
            num_tokens * heads,
            heads,
            size,
            as_bits(eps),
        )
        return y_THD

    def gate_features(self, x_TC: Tensor, gate_TC: Tensor) -> Tensor:
        """Return x · sigmoid(gate)."""
        return self._emit_gate(self._gate, x_TC, gate_TC)

    def gate_heads(self, x_TC: Tensor, gate_TH: Tensor) -> Tensor:
        """Return x · sigmoid(gate), a gate for each head."""
        return self._emit_gate(self._heads, x_TC, gate_TH, gate_TH.shape[1], 0)

    def gate_by_softplus(self, x_TC: Tensor, gate_TG: Tensor) -> Tensor:
        """Return x · softplus(gate), a gate for neighbouring features."""
        return self._emit_gate(self._heads, x_TC, gate_TG, gate_TG.shape[1], 1)

    def gate_by_silu(self, x_TC: Tensor, gate_TC: Tensor) -> Tensor:
        """Return x · silu(gate)."""
        return self._emit_gate(self._silu, x_TC, gate_TC)

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
        """Gate by silu, and normalise each group of features."""
        x_TC, gate_TC = rows_of(x_TC), rows_of(gate_TC)
        num_tokens, size = x_TC.shape
        y_TC = self._stream.empty((num_tokens, size))
        self._stream.hold(weight_C)
        self._stream.emit(
            self._group_norm,
            x_TC.data_ptr(),
            x_TC.stride(0),
            gate_TC.data_ptr(),
            gate_TC.stride(0),
            weight_C.data_ptr(),
            y_TC.data_ptr(),
            num_tokens,
            num_groups,
            size // num_groups,
            as_bits(eps),
            int(is_gated_first),
        )
        return y_TC

    def _emit_gate(self, kernel: int, x_TC: Tensor, gate_TC: Tensor, *sizes: int) -> Tensor:
        x_TC, gate_TC = rows_of(x_TC), rows_of(gate_TC)
        y_TC = self._stream.empty(tuple(x_TC.shape))
        self._stream.emit(
            kernel,
            x_TC.data_ptr(),
            x_TC.stride(0),
            gate_TC.data_ptr(),
            gate_TC.stride(0),
            y_TC.data_ptr(),
            *x_TC.shape,
            *sizes,
        )
        return y_TC
