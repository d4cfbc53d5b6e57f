"""Attention to blocks of tokens that were chosen for each query and key/value head.

What a query reads is cut into equally many items, as many as fill the device when queries are few;
partials are those of :mod:`headstock_triton.attention.decode`.
Shapes: M query heads of a key/value head, N tokens of a tile, D head size, G the same as M.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from headstock_triton.attention.decode import merge
from headstock_triton.attention.narrow import line_of
from headstock_triton.attention.provider import PagedAttention
from headstock_triton.overlap import begin
from headstock_triton.sparse.scores import query_of_item
from headstock_triton.target import cdiv, next_power_of_2

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.ops.attention import StepBatch

LEAST_TOKENS = 256
"""Tokens of an item, at least."""


@triton.jit
def attend_blocks_kernel(
    q,
    kv,
    chosen,
    page_table,
    rows,
    query_starts,
    kv_lengths,
    counts,
    partial_o,
    partial_lse,
    out,
    scale,
    page_stride,
    K,
    ITEMS,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend from the heads of a key/value head to one of the ITEMS parts of its K blocks.

    Program ``program_id(0)`` has query ``program_id(0) // ITEMS``. A negative number is no block.
    """
    begin(PDL)
    token, place, is_real, row, seen = query_of_item(ITEMS, rows, query_starts, kv_lengths, counts)
    head = tl.program_id(1)
    if not is_real:
        return
    group: tl.constexpr = HEADS // KV_HEADS
    tiles: tl.constexpr = (SIZE + BLOCK_N - 1) // BLOCK_N
    share = (K + ITEMS - 1) // ITEMS
    # A query chooses no more blocks than it sees.
    first = place * share
    last = tl.minimum(tl.minimum(first + share, K), (seen + SIZE - 1) // SIZE)
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    line_M = token.to(tl.int64) * HEADS + head * group + m
    inside_MD = (m < group)[:, None] & (d < D)[None, :]
    q_MD = tl.load(q + line_M[:, None] * D + d[None, :], mask=inside_MD, other=0.0)
    pages = page_table + row.to(tl.int64) * page_stride
    chosen += (token.to(tl.int64) * KV_HEADS + head) * K
    # Finite, so that differences of it are numbers where nothing is read.
    max_M = tl.full((BLOCK_M,), -1.0e38, tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    acc_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for tile in tl.range(first * tiles, last * tiles, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        block = tl.load(chosen + tile // tiles)
        within_N = tile % tiles * BLOCK_N + n
        token_N = block * SIZE + within_N
        is_seen_N = (within_N < SIZE) & (block >= 0) & (token_N < seen)
        page_N = tl.load(pages + token_N // PAGE, mask=is_seen_N, other=0)
        line_N = line_of(page_N, head, token_N % PAGE, KV_HEADS, PAGE)
        at_ND = kv + line_N[:, None] * D + d[None, :]
        is_seen_ND = is_seen_N[:, None] & (d < D)[None, :]
        k_ND = tl.load(at_ND, mask=is_seen_ND, other=0.0).to(q_MD.dtype)
        scores_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
        scores_MN = tl.where(is_seen_N[None, :], scores_MN * scale, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(scores_MN, axis=1))
        weights_MN = tl.exp2(scores_MN - new_max_M[:, None])
        shrink_M = tl.exp2(max_M - new_max_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MN, axis=1)
        acc_MD = acc_MD * shrink_M[:, None]
        v_ND = tl.load(at_ND + KV_HEADS * PAGE * D, mask=is_seen_ND, other=0.0).to(q_MD.dtype)
        acc_MD = tl.dot(weights_MN.to(q_MD.dtype), v_ND, acc_MD, input_precision="ieee")
        max_M = new_max_M
    is_empty_M = sum_M == 0.0
    out_MD = acc_MD / tl.where(is_empty_M, 1.0, sum_M)[:, None]
    if ITEMS == 1:
        at_MD = out + line_M[:, None] * D + d[None, :]
        tl.store(at_MD, out_MD.to(out.dtype.element_ty), mask=inside_MD)
    else:
        lse_M = (max_M + tl.log2(tl.where(is_empty_M, 1.0, sum_M))) * 0.6931471805599453
        at_M = tl.program_id(0).to(tl.int64) * HEADS + head * group + m
        tl.store(partial_lse + at_M, tl.where(is_empty_M, float("-inf"), lse_M), mask=m < group)
        tl.store(partial_o + at_M[:, None] * D + d[None, :], out_MD, mask=inside_MD)


@triton.jit
def merge_blocks_kernel(
    counts,
    partial_o,
    partial_lse,
    out,
    ITEMS,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the ITEMS partials of query ``program_id(0)`` and key/value head ``program_id(1)``."""
    begin(PDL)
    token = tl.program_id(0)
    head = tl.program_id(1)
    if token >= tl.load(counts + 1):
        return
    group: tl.constexpr = HEADS // KV_HEADS
    first = token * ITEMS
    merged_GD = merge(
        partial_o, partial_lse, out, first, ITEMS, head, HEADS, group, D, BLOCK_D, BLOCK_G,
        BLOCK_S, False,
    )  # fmt: skip
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    line_G = token.to(tl.int64) * HEADS + head * group + g
    inside_GD = (g < group)[:, None] & (d < D)[None, :]
    at_GD = out + line_G[:, None] * D + d[None, :]
    tl.store(at_GD, merged_GD.to(out.dtype.element_ty), mask=inside_GD)


class BlockAttention(PagedAttention):
    """Attention to chosen blocks, over the pages of attention to all tokens."""

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: grids follow from the batch's shape and from what is chosen."""

    def run(
        self,
        q_THD: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        sinks_H: Tensor | None = None,
        chosen_TKk: Tensor | None = None,
    ) -> Tensor:
        """Attend. [T, H, D]"""
        assert chosen_TKk is not None, "blocks are chosen for every query"
        assert sinks_H is None, "the features that it was built for have no sinks"
        spec = self.spec
        num_tokens, _, most = chosen_TKk.shape
        q_THD = q_THD.contiguous()
        out_THD = torch.empty_like(q_THD)
        items = min(self._tail_spread // num_tokens, cdiv(most * spec.block_size, LEAST_TOKENS))
        items = max(1, min(items, most))  # as many partials as there is room for, or none
        block_n, warps, stages = self.tuning.tail
        attend_blocks_kernel[(num_tokens * items, spec.num_kv_heads)](
            q_THD,
            kv,
            chosen_TKk,
            batch.page_table_RP,
            batch.row_of_token_T,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            self._partial_o,
            self._partial_lse,
            out_THD,
            self._scale,
            batch.page_table_RP.stride(0),
            most,
            items,
            SIZE=spec.block_size,
            HEADS=spec.num_heads,
            KV_HEADS=spec.num_kv_heads,
            PAGE=spec.page_size,
            D=spec.head_dim,
            BLOCK_D=self._block_d,
            BLOCK_M=max(16, next_power_of_2(self._group)),
            BLOCK_N=min(block_n, max(16, next_power_of_2(spec.block_size))),
            STAGES=self._target.stages(stages),
            **self._target.launch(warps),
        )
        if items > 1:
            self._merge(batch, items, out_THD)
        return out_THD

    def _merge(self, batch: StepBatch, items: int, out_THD: Tensor) -> None:
        """Merge the partials of each query, ``items`` of them, into ``out_THD``."""
        spec, block_g = self.spec, next_power_of_2(self._group)
        merge_blocks_kernel[(out_THD.shape[0], spec.num_kv_heads)](
            batch.counts,
            self._partial_o,
            self._partial_lse,
            out_THD,
            items,
            HEADS=spec.num_heads,
            KV_HEADS=spec.num_kv_heads,
            D=spec.head_dim,
            BLOCK_D=self._block_d,
            BLOCK_G=block_g,
            BLOCK_S=max(1, 16 // block_g),
            **self._target.launch(4),
        )
