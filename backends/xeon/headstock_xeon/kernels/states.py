"""Short convolutions, state spaces of Mamba 1 and 2 and the gated delta rule, natively.

The references lay out the pages and read them; here is what a step computes. Shapes: as in
:mod:`headstock.ops.short_convolution`, :mod:`headstock.ops.selective_scan`,
:mod:`headstock.ops.mamba2` and :mod:`headstock.ops.linear_attention`.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.linear_attention import BY_CHANNEL, DeltaWeights, linear_attention
from headstock.ops.linear_attention_reference import ReferenceLinearAttention
from headstock.ops.mamba2 import Mamba2Weights, mamba2
from headstock.ops.mamba2_reference import ReferenceMamba2
from headstock.ops.offers import computes
from headstock.ops.selective_scan import ScanWeights, selective_scan
from headstock.ops.selective_scan_reference import ReferenceSelectiveScan
from headstock.ops.short_convolution import UNGATED, ConvolutionWeights, short_convolution
from headstock.ops.short_convolution_reference import ReferenceShortConvolution
from headstock_xeon.kernels.base import EIGHTS, FLOAT32, Native
from headstock_xeon.stream import Word, as_bits, strided

DELTA = replace(
    FLOAT32, sizes={"key_size": EIGHTS, "value_size": EIGHTS}, features=frozenset({BY_CHANNEL})
)


def rows_in(kv: Tensor, batch: StepBatch) -> tuple[Word, ...]:
    """Return what instructions say of where rows keep their states, and of their tokens."""
    table_RP = batch.page_table_RP
    return (kv, table_RP, table_RP.stride(0), batch.query_starts_R1, batch.kv_lengths_R)


@computes(short_convolution, replace(FLOAT32, features=frozenset({UNGATED})))
class NativeShortConvolution(Native, ReferenceShortConvolution):
    """Products, a causal convolution, and products again, for one spec."""

    def run(
        self, bcx_TY: Tensor, weights: ConvolutionWeights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, and note the rows' last inputs. [T, C]"""
        spec = self.spec
        y_TC = self._stream.empty((bcx_TY.shape[0], spec.size))
        given = (*strided(bcx_TY), weights.conv_CW, weights.bias_C, *rows_in(kv, batch), y_TC)
        sizes = (batch.num_rows, spec.size, spec.kernel_size, int(spec.is_gated))
        self._stream.emit("short_convolution", *given, *sizes)
        return y_TC


@computes(selective_scan, replace(FLOAT32, sizes={"state_size": EIGHTS}))
class NativeSelectiveScan(Native, ReferenceSelectiveScan):
    """A state of each feature, token by token, for one spec."""

    def run(
        self,
        x_TC: Tensor,
        dt_TC: Tensor,
        bc_TX: Tensor,
        weights: ScanWeights,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """Update the rows' states and read them. [T, C]"""
        y_TC = self._stream.empty((x_TC.shape[0], self.spec.size))
        given = (*strided(x_TC), *strided(dt_TC), *strided(bc_TX))
        parts = (weights.decay_CN, weights.skip_C, *rows_in(kv, batch), y_TC)
        sizes = (batch.num_rows, self.spec.size, self.spec.state_size)
        self._stream.emit("selective_scan", *given, *parts, *sizes)
        return y_TC


@computes(mamba2, replace(FLOAT32, sizes={"head_dim": EIGHTS}))
class NativeMamba2(Native, ReferenceMamba2):
    """A state space a head after a causal convolution, token by token, for one spec."""

    def run(
        self, xbc_TC: Tensor, dt_TH: Tensor, weights: Mamba2Weights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, update the rows' states and read them. [T, H, P]"""
        spec = self.spec
        mixed_TC = self._stream.empty((xbc_TC.shape[0], spec.conv_size))
        y_THP = self._stream.empty((xbc_TC.shape[0], spec.num_heads, spec.head_dim))
        self._stream.emit(
            "mamba2",
            *(*strided(xbc_TC), *strided(dt_TH), weights.conv_CW, weights.conv_bias_C),
            *(weights.decay_H, weights.step_bias_H, weights.skip_H, *rows_in(kv, batch)),
            *(mixed_TC, y_THP, batch.num_rows, spec.num_heads, spec.num_groups, spec.head_dim),
            *(spec.state_size, spec.kernel_size),
            *(as_bits(spec.least_step), as_bits(spec.largest_step)),
        )
        return y_THP


@computes(linear_attention, DELTA)
class NativeLinearAttention(Native, ReferenceLinearAttention):
    """The gated delta rule after a causal convolution, token by token, for one spec."""

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
        spec = self.spec
        mixed_TC = self._stream.empty((qkv_TC.shape[0], spec.conv_size))
        y_TVd = self._stream.empty((qkv_TC.shape[0], spec.num_value_heads, spec.value_size))
        self._stream.emit(
            "delta",
            *(*strided(qkv_TC), *strided(b_TV), *strided(a_TG), weights.conv_CW),
            *(weights.decay_V, weights.bias_G, *rows_in(kv, batch), mixed_TC, y_TVd),
            *(batch.num_rows, spec.num_key_heads, spec.num_value_heads, spec.key_size),
            *(spec.value_size, spec.kernel_size, int(spec.decays_by_channel)),
        )
        return y_TVd


STATES = (NativeShortConvolution, NativeSelectiveScan, NativeMamba2, NativeLinearAttention)
