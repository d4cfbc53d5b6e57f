"""Low-rank additions to matrix products, another for each token, in two launches.

A program works for one place of adapters and one tile of tokens, and ends at once where none of
those has that adapter: the grid is as large as there are places, however many are used, so that a
captured step is right for any adapters of its rows. What is multiplied is cut at fixed features,
so that no other token changes a token's sum.

Shapes: M tokens of a tile, I input and O output features, R the rank, K = parts times R features in
between, of one program BLOCK_K.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

MAX_PARTS = 4
"""Matrices of one product that may have additions of their own."""
MOST_CUTS = 8
"""Into how many pieces the input features are cut at most."""
SMALLEST_CUT = 512


@triton.jit(do_not_specialize=["num_tokens"])
def shrink_kernel(
    x,
    down,
    adapters,
    inner,
    x_stride,
    num_tokens,
    NUM_IN: tl.constexpr,
    K: tl.constexpr,
    CUT: tl.constexpr,
    NUM_CUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_I: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Multiply CUT features of a tile of tokens by BLOCK_K rows of one place's first matrix."""
    begin(PDL)
    place = tl.program_id(2)
    token_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_real_M = token_M < num_tokens
    is_mine_M = tl.load(adapters + token_M, mask=is_real_M, other=0) == place + 1
    if tl.max(is_mine_M.to(tl.int32), axis=0) == 0:
        return
    cut = tl.program_id(1) % NUM_CUTS
    k_K = tl.program_id(1) // NUM_CUTS * BLOCK_K + tl.arange(0, BLOCK_K)
    inside_K = k_K < K
    i = cut * CUT + tl.arange(0, BLOCK_I)
    row_M = token_M.to(tl.int64) * x_stride
    line_K = (place.to(tl.int64) * K + k_K) * NUM_IN
    acc_MK = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for at in range(0, CUT, BLOCK_I):
        inside_I = i + at < NUM_IN
        x_MI = tl.load(
            x + row_M[:, None] + (i + at)[None, :],
            mask=is_mine_M[:, None] & inside_I[None, :],
            other=0.0,
        )
        down_IK = tl.load(
            down + line_K[None, :] + (i + at)[:, None],
            mask=inside_K[None, :] & inside_I[:, None],
            other=0.0,
        )
        acc_MK = tl.dot(x_MI, down_IK, acc_MK, input_precision=PRECISION)
    into_M = (cut * num_tokens + token_M).to(tl.int64) * K
    mask = is_mine_M[:, None] & inside_K[None, :]
    tl.store(inner + into_M[:, None] + k_K[None, :], acc_MK, mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])
def expand_kernel(
    out,
    inner,
    up,
    adapters,
    out_stride,
    num_tokens,
    NUM_OUT: tl.constexpr,
    END_0: tl.constexpr,
    END_1: tl.constexpr,
    END_2: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    NUM_CUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Add to BLOCK_O outputs of a tile of tokens what one place's second matrix says."""
    begin(PDL)
    place = tl.program_id(2)
    token_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_real_M = token_M < num_tokens
    is_mine_M = tl.load(adapters + token_M, mask=is_real_M, other=0) == place + 1
    if tl.max(is_mine_M.to(tl.int32), axis=0) == 0:
        return
    after_0: tl.constexpr = (END_0 + BLOCK_O - 1) // BLOCK_O
    after_1: tl.constexpr = after_0 + (END_1 - END_0 + BLOCK_O - 1) // BLOCK_O
    after_2: tl.constexpr = after_1 + (END_2 - END_1 + BLOCK_O - 1) // BLOCK_O
    block = tl.program_id(1)
    is_past_0, is_past_1, is_past_2 = block >= after_0, block >= after_1, block >= after_2
    part = is_past_0.to(tl.int32) + is_past_1.to(tl.int32) + is_past_2.to(tl.int32)
    first = tl.where(is_past_2, END_2, tl.where(is_past_1, END_1, tl.where(is_past_0, END_0, 0)))
    end = tl.where(
        is_past_2, NUM_OUT, tl.where(is_past_1, END_2, tl.where(is_past_0, END_1, END_0))
    )
    passed = tl.where(
        is_past_2, after_2, tl.where(is_past_1, after_1, tl.where(is_past_0, after_0, 0))
    )
    o_O = first + (block - passed) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside_O = o_O < end
    r_R = tl.arange(0, BLOCK_R)
    inside_R = r_R < R
    from_MR = token_M.to(tl.int64)[:, None] * K + (part * R + r_R)[None, :]
    is_known = is_mine_M[:, None] & inside_R[None, :]
    inner_MR = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for cut in range(NUM_CUTS):
        cut_at = inner + tl.cast(cut, tl.int64) * num_tokens * K
        inner_MR += tl.load(cut_at + from_MR, mask=is_known, other=0.0)
    line_O = (place.to(tl.int64) * NUM_OUT + o_O) * R
    up_RO = tl.load(
        up + line_O[None, :] + r_R[:, None],
        mask=inside_R[:, None] & inside_O[None, :],
        other=0.0,
    )
    added_MO = tl.dot(inner_MR.to(up.dtype.element_ty), up_RO, input_precision=PRECISION)
    at_MO = out + token_M.to(tl.int64)[:, None] * out_stride + o_O[None, :]
    mask = is_mine_M[:, None] & inside_O[None, :]
    sum_MO = tl.load(at_MO, mask=mask, other=0.0).to(tl.float32) + added_MO
    tl.store(at_MO, sum_MO.to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Sizes of what one program computes.

    Attributes:
        tokens: Of a tile.
        inputs: Input features that are multiplied at once; half as many of float32.
        outputs: Output features.
        warps: Of a program that computes outputs.
    """

    tokens: int
    inputs: int
    outputs: int
    warps: int


FEW = Tuning(tokens=16, inputs=128, outputs=64, warps=2)
"""Of decodes."""
MANY = Tuning(tokens=64, inputs=128, outputs=128, warps=4)
"""Of prompts, whose tokens have the same adapter side by side."""
SMALL_FEW = Tuning(tokens=16, inputs=32, outputs=64, warps=2)
SMALL_MANY = Tuning(tokens=32, inputs=32, outputs=64, warps=4)
SMALL_FLOAT32 = Tuning(tokens=16, inputs=32, outputs=32, warps=4)
"""Likewise for AMD's warps of 32, which have 256 registers a thread, and keep operands there."""
MANY_FROM = 256
"""Tokens from which a step is taken for prompts."""
STAGES = 3
"""Tiles of a loop that may be under way where a target has no bound of its own."""


def choose_tuning(num_tokens: int, dtype: torch.dtype, target: Target) -> Tuning:
    """Return the sizes for a step of ``num_tokens`` in a model of ``dtype``."""
    if not target.has_small_warps:
        return MANY if num_tokens >= MANY_FROM else FEW
    if dtype == torch.float32:
        return SMALL_FLOAT32
    return SMALL_MANY if num_tokens >= MANY_FROM else SMALL_FEW


class LowRank:
    """The op ``add_lora`` on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def add_lora(
        self,
        out_TO: Tensor,
        x_TI: Tensor,
        down_NKI: Tensor,
        up_NOR: Tensor,
        adapters_T: Tensor,
        *,
        starts: tuple[int, ...],
    ) -> Tensor:
        """See :func:`headstock.ops.lora.add_lora`; works in place."""
        if not x_TI.shape[0]:
            return out_TO
        assert x_TI.stride(1) == out_TO.stride(1) == adapters_T.stride(0) == 1, "columns lie apart"
        tuning = choose_tuning(x_TI.shape[0], x_TI.dtype, self._target)
        inner = self._shrink(x_TI, down_NKI, adapters_T, tuning)
        self._expand(out_TO, inner, up_NOR, adapters_T, starts, tuning)
        return out_TO

    def _shrink(self, x_TI: Tensor, down_NKI: Tensor, adapters_T: Tensor, tuning: Tuning) -> Tensor:
        """Return the products with the first matrices, in pieces. float32. [cuts, T, K]"""
        (num_tokens, num_in), (num_places, inner_size, _) = x_TI.shape, down_NKI.shape
        block_i = tuning.inputs // 2 if x_TI.dtype == torch.float32 else tuning.inputs
        cut = max(SMALLEST_CUT, cdiv(cdiv(num_in, MOST_CUTS), block_i) * block_i)
        num_cuts = cdiv(num_in, cut)
        block_k = min(64, max(16, next_power_of_2(inner_size)))
        shape = (num_cuts, num_tokens, inner_size)
        inner = torch.empty(shape, dtype=torch.float32, device=x_TI.device)
        num_blocks = num_cuts * cdiv(inner_size, block_k)
        shrink_kernel[(cdiv(num_tokens, tuning.tokens), num_blocks, num_places)](
            x_TI,
            down_NKI,
            adapters_T,
            inner,
            x_TI.stride(0),
            num_tokens,
            NUM_IN=num_in,
            K=inner_size,
            CUT=cut,
            NUM_CUTS=num_cuts,
            BLOCK_M=tuning.tokens,
            BLOCK_K=block_k,
            BLOCK_I=block_i,
            PRECISION=self._target.precision(x_TI.dtype),
            num_stages=self._target.stages(STAGES),  # pyright: ignore[reportCallIssue]
            **self._target.launch(4),
        )
        return inner

    def _expand(
        self,
        out_TO: Tensor,
        inner: Tensor,
        up_NOR: Tensor,
        adapters_T: Tensor,
        starts: tuple[int, ...],
        tuning: Tuning,
    ) -> None:
        """Add the products of those with the second matrices to ``out_TO``."""
        num_cuts, num_tokens, inner_size = inner.shape
        num_places, num_out, rank = up_NOR.shape
        ends = (*starts[1:], *(num_out,) * (MAX_PARTS + 1 - len(starts)))
        sizes = [end - first for first, end in zip((0, *ends), ends, strict=False)]
        num_blocks = sum(cdiv(size, tuning.outputs) for size in sizes)
        expand_kernel[(cdiv(num_tokens, tuning.tokens), num_blocks, num_places)](
            out_TO,
            inner,
            up_NOR,
            adapters_T,
            out_TO.stride(0),
            num_tokens,
            NUM_OUT=num_out,
            END_0=ends[0],
            END_1=ends[1],
            END_2=ends[2],
            K=inner_size,
            R=rank,
            NUM_CUTS=num_cuts,
            BLOCK_M=tuning.tokens,
            BLOCK_R=max(16, next_power_of_2(rank)),
            BLOCK_O=tuning.outputs,
            PRECISION=self._target.precision(out_TO.dtype),
            **self._target.launch(tuning.warps),
        )
