"""State spaces of Mamba 2: steps, and chunks, with their provider.

A head's matrix is cut into blocks of columns, which depend on no others; a program keeps one in
registers while it goes through its row. Rows of one token take a step, bound by reading and
writing the matrix; others go by chunks.

Shapes: as in :mod:`headstock.ops.mamba2`; M tokens of a chunk.
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
from headstock.ops.mamba2 import Mamba2Spec, Mamba2Weights
from headstock_triton.convolution import convolve
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

STATE_TAG = "state-inputs-hnp"
"""As the reference has it: inputs of the convolution, then the matrices."""
CHUNK = 32
"""Tokens of a chunk."""
COLUMNS = 32
"""Columns of a matrix that a program has in registers."""
LEAST_DECAY = tl.constexpr(-32.0)
"""Logarithm of what counts as nothing left: sums over a chunk stay small, so that differences of
them keep their digits."""


@triton.jit
def steps_of(dt, bias, least, largest):
    """Return softplus(dt + bias) within its limits. float32."""
    x = dt.to(tl.float32) + bias
    soft = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))
    return tl.minimum(tl.maximum(soft, least), largest)


@triton.jit
def step_kernel(
    mixed,
    dt,
    decay,
    bias,
    skip,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    counts,
    y,
    dt_stride,
    table_stride,
    kv_stride,
    inputs_size,
    least,
    largest,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take the token of row ``program_id(2)`` through some columns of a head's matrix."""
    begin(PDL)
    row = tl.program_id(2)
    head = tl.program_id(1)
    if row >= tl.load(counts):
        return
    token = tl.load(query_starts + row).to(tl.int64)
    if tl.load(query_starts + row + 1) - token != 1:
        return
    n = tl.arange(0, BLOCK_N)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside_NP = (n < N)[:, None] & (p < P)[None, :]
    line = mixed + token * (HEADS * P + 2 * GROUPS * N)
    shared = line + HEADS * P + head // (HEADS // GROUPS) * N
    x_P = tl.load(line + head * P + p, mask=p < P, other=0.0).to(tl.float32)
    b_N = tl.load(shared + n, mask=n < N, other=0.0).to(tl.float32)
    c_N = tl.load(shared + GROUPS * N + n, mask=n < N, other=0.0).to(tl.float32)
    step = steps_of(tl.load(dt + token * dt_stride + head), tl.load(bias + head), least, largest)
    entry = page_table + row * table_stride
    place = inputs_size + head * N * P
    found = kv + tl.load(entry).to(tl.int64) * kv_stride + place
    left = kv + tl.load(entry + 1).to(tl.int64) * kv_stride + place
    at_NP = n[:, None] * P + p[None, :]
    is_old = tl.load(kv_lengths + row) > 1
    state_NP = tl.load(found + at_NP, mask=inside_NP & is_old, other=0.0)
    state_NP *= tl.exp(-tl.exp(tl.load(decay + head)) * step)
    state_NP += b_N[:, None] * (x_P * step)[None, :]
    tl.store(left + at_NP, state_NP, mask=inside_NP)
    read_P = tl.sum(state_NP * c_N[:, None], axis=0) + x_P * tl.load(skip + head)
    to = y + (token * HEADS + head) * P + p
    tl.store(to, read_P.to(y.dtype.element_ty), mask=p < P)


@triton.jit
def chunk_kernel(
    mixed,
    dt,
    decay,
    bias,
    skip,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    counts,
    y,
    dt_stride,
    table_stride,
    kv_stride,
    inputs_size,
    least,
    largest,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take row ``program_id(2)``, of several tokens, through some columns of a head's matrix."""
    begin(PDL)
    row = tl.program_id(2)
    head = tl.program_id(1)
    if row >= tl.load(counts):
        return
    start = tl.load(query_starts + row)
    end = tl.load(query_starts + row + 1)
    if end - start <= 1:
        return
    features: tl.constexpr = HEADS * P + 2 * GROUPS * N
    group = head // (HEADS // GROUPS)
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    speed = -tl.exp(tl.load(decay + head))
    bias_1 = tl.load(bias + head)
    skip_1 = tl.load(skip + head)
    entry = page_table + row * table_stride
    place = inputs_size + head * N * P
    found = kv + tl.load(entry).to(tl.int64) * kv_stride + place
    left = kv + tl.load(entry + 1).to(tl.int64) * kv_stride + place
    at_NP = n[:, None] * P + p[None, :]
    inside_NP = (n < N)[:, None] & (p < P)[None, :]
    is_old = tl.load(kv_lengths + row) > end - start
    state_NP = tl.load(found + at_NP, mask=inside_NP & is_old, other=0.0)
    for first in range(start, end, BLOCK_M):
        token_M = (first + m).to(tl.int64)
        is_there_M = token_M < end
        line_M1 = mixed + token_M[:, None] * features
        inside_MN = is_there_M[:, None] & (n < N)[None, :]
        inside_MP = is_there_M[:, None] & (p < P)[None, :]
        at_MN = line_M1 + HEADS * P + group * N + n[None, :]
        b_MN = tl.load(at_MN, mask=inside_MN, other=0.0).to(tl.float32)
        c_MN = tl.load(at_MN + GROUPS * N, mask=inside_MN, other=0.0).to(tl.float32)
        at_MP = line_M1 + head * P + p[None, :]
        x_MP = tl.load(at_MP, mask=inside_MP, other=0.0).to(tl.float32)
        dt_M = tl.load(dt + token_M * dt_stride + head, mask=is_there_M, other=0.0)
        # Tokens past the end leave the state as it is.
        step_M = tl.where(is_there_M, steps_of(dt_M, bias_1, least, largest), 0.0)
        since_M = tl.cumsum(tl.maximum(speed * step_M, LEAST_DECAY), axis=0)
        last = tl.sum(tl.where(m == BLOCK_M - 1, since_M, 0.0), axis=0)
        between_MM = tl.exp(tl.minimum(since_M[:, None] - since_M[None, :], 0.0))
        written_MP = x_MP * step_M[:, None]
        scores_MM = tl.dot(c_MN, tl.trans(b_MN), input_precision=PRECISION) * between_MM
        scores_MM = tl.where(m[:, None] >= m[None, :], scores_MM, 0.0)
        read_MP = tl.dot(c_MN, state_NP, input_precision=PRECISION) * tl.exp(since_M)[:, None]
        read_MP += tl.dot(scores_MM, written_MP, input_precision=PRECISION) + x_MP * skip_1
        to_MP = y + (token_M[:, None] * HEADS + head) * P + p[None, :]
        tl.store(to_MP, read_MP.to(y.dtype.element_ty), mask=inside_MP)
        left_MN = b_MN * tl.exp(last - since_M)[:, None]
        update_NP = tl.dot(tl.trans(left_MN), written_MP, input_precision=PRECISION)
        state_NP = state_NP * tl.exp(last) + update_NP
    tl.store(left + at_NP, state_NP, mask=inside_NP)


class TritonMamba2:
    """A state space a head after a causal convolution, for one spec."""

    def __init__(self, spec: Mamba2Spec, device: OpDevice) -> None:
        self.spec = spec
        self.page_format = PageFormat(tag=STATE_TAG, page_sizes=(1,), dtype=torch.float32)
        self.graph_key: tuple[int, ...] = ()
        self._target = Target.of(device)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, numbers of a page]."""
        return (num_pages, self.spec.page_numbers)

    def plan(self, batch: StepBatch) -> None:
        """Note whether the step has rows of several tokens."""
        self.graph_key = (int(batch.max_query > 1),)

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
        spec = self.spec
        assert xbc_TC.stride(1) == dt_TH.stride(1) == 1, "columns lie apart"
        conv = (weights.conv_CW, weights.conv_bias_C)
        mixed_TC = convolve(xbc_TC, *conv, kv, batch, self._target)
        y_THP = xbc_TC.new_empty((xbc_TC.shape[0], spec.num_heads, spec.head_dim))
        args = (
            mixed_TC,
            dt_TH,
            weights.decay_H,
            weights.step_bias_H,
            weights.skip_H,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            y_THP,
            dt_TH.stride(0),
            batch.page_table_RP.stride(0),
            kv.stride(0),
            spec.inputs_size,
            spec.least_step,
            spec.largest_step,
        )
        columns = min(COLUMNS, max(16, next_power_of_2(spec.head_dim)))
        sizes = {
            "HEADS": spec.num_heads,
            "GROUPS": spec.num_groups,
            "P": spec.head_dim,
            "N": spec.state_size,
            "BLOCK_N": max(16, next_power_of_2(spec.state_size)),
            "BLOCK_P": columns,
        }
        grid = (cdiv(spec.head_dim, columns), spec.num_heads, batch.num_rows)
        if batch.max_query > 1:
            precision = self._target.state_precision(spec.dtype)
            launch = self._target.launch(4)
            chunk_kernel[grid](*args, BLOCK_M=CHUNK, PRECISION=precision, **sizes, **launch)
        step_kernel[grid](*args, **sizes, **self._target.launch(4))
        return y_THP
