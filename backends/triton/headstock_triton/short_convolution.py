"""Short convolutions, gated and not: the kernels and their provider.

Shapes: as in :mod:`headstock.ops.short_convolution`.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.short_convolution import ConvolutionWeights, ShortConvolutionSpec
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

STATE_TAG = "state-inputs"
"""As the reference has it."""
BLOCK = 1024
"""Features that a program convolves."""


@triton.jit
def taken_in(at, C, mask, IS_GATED: tl.constexpr):
    """Return b · x of the features at ``at``, rounded as the activations are; ungated: x. float32.

    The three kinds of features lie C apart, and of the ungated there is one.
    """
    b = tl.load(at, mask=mask, other=0.0)
    if not IS_GATED:
        return b.to(tl.float32)
    x = tl.load(at + 2 * C, mask=mask, other=0.0)
    return (b.to(tl.float32) * x.to(tl.float32)).to(b.dtype).to(tl.float32)


@triton.jit
def mix_kernel(
    bcx,
    weight,
    bias,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    row_of_token,
    y,
    stride,
    table_stride,
    kv_stride,
    C,
    IS_GATED: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute some features of token ``program_id(0)``: y [T, C]."""
    begin(PDL)
    token = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < C
    row = tl.load(row_of_token + token)
    start = tl.load(query_starts + row)
    is_new = tl.load(kv_lengths + row) <= tl.load(query_starts + row + 1) - start
    found = kv + tl.load(page_table + row * table_stride).to(tl.int64) * kv_stride
    sum_C = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    for i in tl.static_range(W):  # pyright: ignore[reportGeneralTypeIssues]
        source = token - (W - 1) + i
        at = bcx + source.to(tl.int64) * stride + c
        here_C = taken_in(at, C, inside & (source >= start), IS_GATED)
        kept = source - start + (W - 1)
        is_before = (source < start) & (is_new == 0)
        before_C = tl.load(found + kept * C + c, mask=inside & is_before, other=0.0)
        w_C = tl.load(weight + c * W + i, mask=inside, other=0.0).to(tl.float32)
        sum_C += (here_C + before_C) * w_C
    out_C = sum_C.to(y.dtype.element_ty).to(tl.float32)
    if IS_GATED:
        by = tl.load(bcx + token.to(tl.int64) * stride + C + c, mask=inside, other=0.0)
        out_C *= by.to(tl.float32)
    tl.store(y + token.to(tl.int64) * C + c, out_C.to(y.dtype.element_ty), mask=inside)


@triton.jit
def keep_taken_in_kernel(
    bcx,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    counts,
    stride,
    table_stride,
    kv_stride,
    C,
    IS_GATED: tl.constexpr,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Leave the last W - 1 of what row ``program_id(0)`` took in on its page, some features."""
    begin(PDL)
    row = tl.program_id(0)
    if row >= tl.load(counts):
        return
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    i = tl.arange(0, BLOCK_W)
    inside = (i < W - 1)[:, None] & (c < C)[None, :]
    start = tl.load(query_starts + row)
    end = tl.load(query_starts + row + 1)
    is_new = tl.load(kv_lengths + row) <= end - start
    entry = page_table + row * table_stride
    found = kv + tl.load(entry).to(tl.int64) * kv_stride
    left = kv + tl.load(entry + 1).to(tl.int64) * kv_stride
    source = end - (W - 1) + i
    at = bcx + source.to(tl.int64)[:, None] * stride + c[None, :]
    here = taken_in(at, C, inside & (source >= start)[:, None], IS_GATED)
    kept = (source - start + (W - 1))[:, None] * C + c[None, :]
    is_before = (source < start)[:, None] & (is_new == 0)
    before = tl.load(found + kept, mask=inside & is_before, other=0.0)
    tl.debug_barrier()  # the page may be found and left alike
    tl.store(left + i[:, None] * C + c[None, :], here + before, mask=inside)


class TritonShortConvolution:
    """A causal convolution, gated before and after or not, for one spec."""

    def __init__(self, spec: ShortConvolutionSpec, device: OpDevice) -> None:
        self.spec = spec
        self.page_format = PageFormat(tag=STATE_TAG, page_sizes=(1,), dtype=torch.float32)
        self.graph_key: tuple[int, ...] = ()
        self._target = Target.of(device)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, numbers of a state]."""
        return (num_pages, self.spec.state_size)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: kernels read the batch."""

    def read(self, kv: Tensor, pages_R: Tensor) -> Tensor:
        """Return what pages hold. [R, W - 1, C]"""
        return kv.index_select(0, pages_R.long()).unflatten(1, (-1, self.spec.size))

    def run(
        self, bcx_TY: Tensor, weights: ConvolutionWeights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, and note the rows' last inputs. [T, C]"""
        assert bcx_TY.stride(1) == 1, "columns lie apart"
        size, width = self.spec.size, self.spec.kernel_size
        num_tokens, blocks = bcx_TY.shape[0], cdiv(size, BLOCK)
        y_TC = bcx_TY.new_empty((num_tokens, size))
        strides = (bcx_TY.stride(0), batch.page_table_RP.stride(0), kv.stride(0))
        mix_kernel[(num_tokens, blocks)](
            bcx_TY,
            weights.conv_CW,
            weights.bias_C,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.row_of_token_T,
            y_TC,
            *strides,
            size,
            IS_GATED=self.spec.is_gated,
            W=width,
            BLOCK=BLOCK,
            **self._target.launch(4),
        )
        keep_taken_in_kernel[(batch.num_rows, blocks)](
            bcx_TY,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            *strides,
            size,
            IS_GATED=self.spec.is_gated,
            W=width,
            BLOCK_W=next_power_of_2(width - 1),
            BLOCK=BLOCK,
            **self._target.launch(4),
        )
        return y_TC
