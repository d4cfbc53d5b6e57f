"""State spaces of Mamba 1, token by token.

Features depend on no others; a program keeps the states of some in registers while it goes through
its row. The step is bound by reading and writing the states, and a prompt by its length: each
number has a speed of decay of its own, so no product of matrices takes several tokens at once.

Shapes: as in :mod:`headstock.ops.selective_scan`.
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
from headstock.ops.selective_scan import ScanWeights, SelectiveScanSpec
from headstock_triton.mamba2 import steps_of
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

TAG = "state-cn"
"""As the reference has it: a page is the states of all features."""
NUMBERS = 512
"""Numbers of states that a program has in registers."""


@triton.jit
def scan_kernel(
    x,
    dt,
    bc,
    decay,
    skip,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    counts,
    y,
    x_stride,
    dt_stride,
    bc_stride,
    table_stride,
    kv_stride,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take row ``program_id(1)`` through the states of some features."""
    begin(PDL)
    row = tl.program_id(1)
    if row >= tl.load(counts):
        return
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    inside_C, inside_N = c < SIZE, n < N
    inside_CN = inside_C[:, None] & inside_N[None, :]
    at_CN = c[:, None] * N + n[None, :]
    start = tl.load(query_starts + row)
    end = tl.load(query_starts + row + 1)
    speed_CN = -tl.exp(tl.load(decay + at_CN, mask=inside_CN, other=0.0))
    skip_C = tl.load(skip + c, mask=inside_C, other=0.0)
    entry = page_table + row * table_stride
    found = kv + tl.load(entry).to(tl.int64) * kv_stride
    left = kv + tl.load(entry + 1).to(tl.int64) * kv_stride
    is_old = tl.load(kv_lengths + row) > end - start
    state_CN = tl.load(found + at_CN, mask=inside_CN & is_old, other=0.0)
    token = start.to(tl.int64)
    x_at = x + token * x_stride + c
    dt_at = dt + token * dt_stride + c
    b_at = bc + token * bc_stride + n
    y_at = y + token * SIZE + c
    for _ in range(start, end):
        x_C = tl.load(x_at, mask=inside_C, other=0.0).to(tl.float32)
        step_C = steps_of(tl.load(dt_at, mask=inside_C, other=0.0), 0.0, 0.0, float("inf"))
        b_N = tl.load(b_at, mask=inside_N, other=0.0).to(tl.float32)
        c_N = tl.load(b_at + N, mask=inside_N, other=0.0).to(tl.float32)
        state_CN *= tl.exp(speed_CN * step_C[:, None])
        state_CN += (x_C * step_C)[:, None] * b_N[None, :]
        read_C = tl.sum(state_CN * c_N[None, :], axis=1) + x_C * skip_C
        tl.store(y_at, read_C.to(y.dtype.element_ty), mask=inside_C)
        x_at += x_stride
        dt_at += dt_stride
        b_at += bc_stride
        y_at += SIZE
    tl.store(left + at_CN, state_CN, mask=inside_CN)


class TritonSelectiveScan:
    """A state of each feature, for one spec."""

    def __init__(self, spec: SelectiveScanSpec, device: OpDevice) -> None:
        self.spec = spec
        self.page_format = PageFormat(tag=TAG, page_sizes=(1,), dtype=torch.float32)
        self.graph_key: tuple[int, ...] = ()
        self._target = Target.of(device)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, numbers of a page]."""
        return (num_pages, self.spec.page_numbers)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: the kernel reads the rows on the device, however many tokens they have."""

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
        spec = self.spec
        assert x_TC.stride(1) == dt_TC.stride(1) == bc_TX.stride(1) == 1, "columns lie apart"
        y_TC = x_TC.new_empty(x_TC.shape)
        block_n = next_power_of_2(spec.state_size)
        block_c = max(1, NUMBERS // block_n)
        scan_kernel[(cdiv(spec.size, block_c), batch.num_rows)](
            x_TC,
            dt_TC,
            bc_TX,
            weights.decay_CN,
            weights.skip_C,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            y_TC,
            x_TC.stride(0),
            dt_TC.stride(0),
            bc_TX.stride(0),
            batch.page_table_RP.stride(0),
            kv.stride(0),
            SIZE=spec.size,
            N=spec.state_size,
            BLOCK_C=block_c,
            BLOCK_N=block_n,
            **self._target.launch(1),
        )
        return y_TC
