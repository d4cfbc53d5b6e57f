"""Short convolutions and state spaces of Mamba 1 and 2, natively.

Shapes: as in :mod:`headstock.ops.short_convolution`, :mod:`headstock.ops.selective_scan` and
:mod:`headstock.ops.mamba2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.attention import KVLayout, StepBatch
from headstock.ops.mamba2 import Mamba2Spec, Mamba2Weights
from headstock.ops.selective_scan import ScanWeights, SelectiveScanSpec
from headstock.ops.short_convolution import ConvolutionWeights, ShortConvolutionSpec
from headstock_xeon.stream import as_bits, rows_of

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice

INPUTS_TAG, MATRICES_TAG, FEATURES_TAG = "state-inputs", "state-inputs-hnp", "state-cn"
"""As the references have them."""


class NativeShortConvolution:
    """Products, a causal convolution, and products again, for one spec."""

    def __init__(self, spec: ShortConvolutionSpec, device: XeonDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        self.layout = KVLayout(tag=INPUTS_TAG, page_sizes=(1,), dtype=torch.float32)
        self._stream = device.stream
        self._kernel = device.stream.kernel("short_convolution")

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """Return [pages, numbers of a state]."""
        return (num_pages, self.spec.state_size)

    def plan(self, batch: StepBatch) -> None:
        """Check that the step is not larger than was said."""
        assert batch.num_tokens <= self.spec.max_tokens, f"{batch.num_tokens} tokens"
        assert batch.num_rows <= self.spec.max_rows, f"{batch.num_rows} rows"

    def read(self, kv: Tensor, pages_R: Tensor) -> Tensor:
        """Return what pages hold. [R, W - 1, C]"""
        return kv.index_select(0, pages_R.long()).unflatten(1, (-1, self.spec.size))

    def run(
        self, bcx_TY: Tensor, weights: ConvolutionWeights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, and note the rows' last inputs. [T, C]"""
        spec, stream = self.spec, self._stream
        bcx_TY = rows_of(bcx_TY)
        y_TC = stream.empty((bcx_TY.shape[0], spec.size))
        stream.hold(kv, batch, weights)
        stream.emit(
            self._kernel,
            bcx_TY.data_ptr(),
            bcx_TY.stride(0),
            weights.conv_CW.data_ptr(),
            weights.bias_C.data_ptr(),
            kv.data_ptr(),
            batch.page_table_RP.data_ptr(),
            batch.page_table_RP.stride(0),
            batch.query_starts_R1.data_ptr(),
            batch.kv_lengths_R.data_ptr(),
            y_TC.data_ptr(),
            batch.num_rows,
            spec.size,
            spec.kernel_size,
            int(spec.is_gated),
        )
        return y_TC


class NativeSelectiveScan:
    """A state of each feature, token by token, for one spec."""

    def __init__(self, spec: SelectiveScanSpec, device: XeonDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        self.layout = KVLayout(tag=FEATURES_TAG, page_sizes=(1,), dtype=torch.float32)
        self._stream = device.stream
        self._kernel = device.stream.kernel("selective_scan")

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """Return [pages, numbers of a page]."""
        return (num_pages, self.spec.page_numbers)

    def plan(self, batch: StepBatch) -> None:
        """Check that the step is not larger than was said."""
        assert batch.num_tokens <= self.spec.max_tokens, f"{batch.num_tokens} tokens"
        assert batch.num_rows <= self.spec.max_rows, f"{batch.num_rows} rows"

    def read(self, kv: Tensor, pages_R: Tensor) -> Tensor:
        """Return what pages hold. [R, C, N]"""
        return kv.index_select(0, pages_R.long()).unflatten(1, (self.spec.size, -1))

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
        spec, stream = self.spec, self._stream
        x_TC, dt_TC, bc_TX = rows_of(x_TC), rows_of(dt_TC), rows_of(bc_TX)
        y_TC = stream.empty((x_TC.shape[0], spec.size))
        stream.hold(kv, batch, weights)
        stream.emit(
            self._kernel,
            x_TC.data_ptr(),
            x_TC.stride(0),
            dt_TC.data_ptr(),
            dt_TC.stride(0),
            bc_TX.data_ptr(),
            bc_TX.stride(0),
            weights.decay_CN.data_ptr(),
            weights.skip_C.data_ptr(),
            kv.data_ptr(),
            batch.page_table_RP.data_ptr(),
            batch.page_table_RP.stride(0),
            batch.query_starts_R1.data_ptr(),
            batch.kv_lengths_R.data_ptr(),
            y_TC.data_ptr(),
            batch.num_rows,
            spec.size,
            spec.state_size,
        )
        return y_TC


class NativeMamba2:
    """A state space a head after a causal convolution, token by token, for one spec."""

    def __init__(self, spec: Mamba2Spec, device: XeonDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        self.layout = KVLayout(tag=MATRICES_TAG, page_sizes=(1,), dtype=torch.float32)
        self._stream = device.stream
        self._kernel = device.stream.kernel("mamba2")

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """Return [pages, numbers of a page]."""
        return (num_pages, self.spec.page_numbers)

    def plan(self, batch: StepBatch) -> None:
        """Check that the step is not larger than was said."""
        assert batch.num_tokens <= self.spec.max_tokens, f"{batch.num_tokens} tokens"
        assert batch.num_rows <= self.spec.max_rows, f"{batch.num_rows} rows"

    def read(self, kv: Tensor, pages_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return what pages hold. [R, W - 1, C] and [R, H, N, P]"""
        spec = self.spec
        found_RX = kv.index_select(0, pages_R.long())
        inputs_RX, states_RX = found_RX.tensor_split((spec.inputs_size,), dim=1)
        shape = (spec.num_heads, spec.state_size, spec.head_dim)
        return inputs_RX.unflatten(1, (-1, spec.conv_size)), states_RX.unflatten(1, shape)

    def run(
        self, xbc_TC: Tensor, dt_TH: Tensor, weights: Mamba2Weights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, update the rows' states and read them. [T, H, P]"""
        spec, stream = self.spec, self._stream
        xbc_TC, dt_TH = rows_of(xbc_TC), rows_of(dt_TH)
        num_tokens = xbc_TC.shape[0]
        mixed_TC = stream.empty((num_tokens, spec.conv_size))
        y_THP = stream.empty((num_tokens, spec.num_heads, spec.head_dim))
        stream.hold(kv, batch, weights)
        stream.emit(
            self._kernel,
            xbc_TC.data_ptr(),
            xbc_TC.stride(0),
            dt_TH.data_ptr(),
            dt_TH.stride(0),
            weights.conv_CW.data_ptr(),
            weights.conv_bias_C.data_ptr(),
            weights.decay_H.data_ptr(),
            weights.step_bias_H.data_ptr(),
            weights.skip_H.data_ptr(),
            kv.data_ptr(),
            batch.page_table_RP.data_ptr(),
            batch.page_table_RP.stride(0),
            batch.query_starts_R1.data_ptr(),
            batch.kv_lengths_R.data_ptr(),
            mixed_TC.data_ptr(),
            y_THP.data_ptr(),
            batch.num_rows,
            spec.num_heads,
            spec.num_groups,
            spec.head_dim,
            spec.state_size,
            spec.kernel_size,
            as_bits(spec.least_step),
            as_bits(spec.largest_step),
        )
        return y_THP
