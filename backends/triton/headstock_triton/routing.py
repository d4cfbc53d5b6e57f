"""Which expert computes which token: choosing, and lining the choices up by expert.

Everything stays on the device, in grids that only the number of tokens decides.

Shapes: T tokens, E experts, k experts of a token, N = T · k entries (the choices, token by token).
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

from headstock.ops.moe import NO_EXPERT
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

CHUNK, LARGE_CHUNK = 64, 128
"""Entries that a program lines up: one looks at the counts of all, which grow with their number."""
MANY_ENTRIES = 4096
"""From as many on chunks are large."""
PIECE = 32
"""Entries, or tiles, that it looks at together."""
TILE_COLUMNS = 3
"""expert, first row, row past the expert's last."""


@triton.jit
def route_topk_kernel(
    logits,
    weights,
    experts,
    stride,
    E,
    K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORMALIZED: tl.constexpr,
    NONE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Choose K experts of row ``program_id(0)``.

    A logit becomes a whole number of the same order, with the expert below it so that no two are
    equal and lower experts win; then the highest is taken out K times.
    """
    begin(PDL)
    lowest: tl.constexpr = -9223372036854775807
    row = tl.program_id(0).to(tl.int64)
    expert_E = tl.arange(0, BLOCK_E)
    inside = expert_E < E
    logit_E = tl.load(logits + row * stride + expert_E, mask=inside, other=float("-inf"))
    logit_E = logit_E.to(tl.float32)
    has_nan = tl.sum((logit_E != logit_E).to(tl.int32), axis=0) > 0
    logit_E = tl.where((logit_E != logit_E) | (logit_E == 0), 0.0, logit_E)  # one zero, no NaN
    bits_E = logit_E.to(tl.int32, bitcast=True)
    order_E = bits_E ^ ((bits_E >> 31) & 0x7FFFFFFF)
    key_E = (order_E.to(tl.int64) << 32) | (0x7FFFFFFF - expert_E).to(tl.int64)
    key_E = tl.where(inside, key_E, lowest)
    k = tl.arange(0, BLOCK_K)
    best_k = tl.zeros((BLOCK_K,), tl.int64)
    for place in tl.static_range(K):  # pyright: ignore[reportGeneralTypeIssues]
        best = tl.max(key_E, axis=0)
        best_k = tl.where(k == place, best, best_k)
        key_E = tl.where(key_E == best, lowest, key_E)
    order_k = (best_k >> 32).to(tl.int32)
    bits_k = order_k ^ ((order_k >> 31) & 0x7FFFFFFF)
    highest = tl.max(logit_E, axis=0)
    share_k = tl.exp(bits_k.to(tl.float32, bitcast=True) - highest)
    if NORMALIZED:
        whole = tl.sum(tl.where(k < K, share_k, 0.0), axis=0)
    else:
        whole = tl.sum(tl.exp(logit_E - highest), axis=0)
    expert_k = 0x7FFFFFFF - (best_k & 0x7FFFFFFF).to(tl.int32)
    at = row * K + k
    tl.store(weights + at, tl.where(has_nan, 0.0, share_k / whole), mask=k < K)
    tl.store(experts + at, tl.where(has_nan, NONE, expert_k), mask=k < K)


@triton.jit
def count_chunk(experts, chunk, N, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr):
    """Return how many entries of a chunk each expert has. [E]"""
    expert_E = tl.arange(0, BLOCK_E)
    count_E = tl.zeros((BLOCK_E,), tl.int32)
    for first in range(0, tl.minimum(CHUNK, N - chunk * CHUNK), PIECE):
        entry = chunk * CHUNK + first + tl.arange(0, PIECE)
        expert = tl.load(experts + entry, mask=entry < N, other=-1)
        count_E += tl.sum((expert[:, None] == expert_E[None, :]).to(tl.int32), axis=0)
    return count_E


@triton.jit(do_not_specialize=["N"])
def count_entries_kernel(
    experts,
    counts,
    N,
    BLOCK_E: tl.constexpr,
    CHUNK: tl.constexpr,
    PIECE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Count the entries of chunk ``program_id(0)`` by expert."""
    begin(PDL)
    chunk = tl.program_id(0)
    count_E = count_chunk(experts, chunk, N, BLOCK_E, CHUNK, PIECE)
    tl.store(counts + chunk * BLOCK_E + tl.arange(0, BLOCK_E), count_E)


@triton.jit(do_not_specialize=["N", "CHUNKS", "TILES"])
def line_up_kernel(
    experts,
    counts,
    entries,
    tiles,
    N,
    CHUNKS,
    TILES,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNK: tl.constexpr,
    PIECE: tl.constexpr,
    IS_ONE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Give each entry of chunk ``program_id(0)`` its row, and say which tiles of rows there are.

    Rows go by expert, then by entry. The tiles are shared out among the programs.
    """
    begin(PDL)
    chunk = tl.program_id(0)
    expert_E = tl.arange(0, BLOCK_E)
    piece = tl.arange(0, PIECE)
    before_E = tl.zeros((BLOCK_E,), tl.int32)
    if IS_ONE:
        count_E = count_chunk(experts, chunk, N, BLOCK_E, CHUNK, PIECE)
    else:
        count_E = tl.zeros((BLOCK_E,), tl.int32)
        for first in range(0, CHUNKS, PIECE):
            other = first + piece
            at = other[:, None] * BLOCK_E + expert_E[None, :]
            some = tl.load(counts + at, mask=(other < CHUNKS)[:, None], other=0)
            count_E += tl.sum(some, axis=0)
            before_E += tl.sum(tl.where((other < chunk)[:, None], some, 0), axis=0)
    end_E = tl.cumsum(count_E, axis=0)
    begin_E = end_E - count_E

    next_E = begin_E + before_E
    for first in range(0, tl.minimum(CHUNK, N - chunk * CHUNK), PIECE):
        entry = chunk * CHUNK + first + piece
        expert = tl.load(experts + entry, mask=entry < N, other=-1)
        is_its = (expert[:, None] == expert_E[None, :]).to(tl.int32)
        row = tl.sum(is_its * (tl.cumsum(is_its, axis=0) - 1 + next_E[None, :]), axis=1)
        tl.store(entries + row, entry, mask=expert >= 0)
        next_E += tl.sum(is_its, axis=0)

    size_E = (count_E + BLOCK_M - 1) // BLOCK_M
    last_tile_E = tl.cumsum(size_E, axis=0)
    first_tile_E = last_tile_E - size_E
    for first in range(chunk * PIECE, TILES, CHUNKS * PIECE):
        tile = (first + piece)[:, None]
        is_its = (first_tile_E[None, :] <= tile) & (tile < last_tile_E[None, :])
        row = begin_E[None, :] + (tile - first_tile_E[None, :]) * BLOCK_M
        # A tile of no expert has expert -1.
        expert = tl.sum(tl.where(is_its, expert_E[None, :] + 1, 0), axis=1) - 1
        at = tiles + (first + piece) * 3
        inside = first + piece < TILES
        tl.store(at, expert, mask=inside)
        tl.store(at + 1, tl.sum(tl.where(is_its, row, 0), axis=1), mask=inside)
        tl.store(at + 2, tl.sum(tl.where(is_its, end_E[None, :], 0), axis=1), mask=inside)


@dataclass(frozen=True, slots=True)
class LineUp:
    """Entries by expert, cut into tiles of rows that have one expert.

    Attributes:
        entries_N: The entry of each row; rows past those that have an expert are undefined. int32.
        tiles_L3: (expert, first row, row past the expert's last) of as many tiles as there may
            be; -1 is the expert of those that there are not. int32. [L, 3]
    """

    entries_N: Tensor
    tiles_L3: Tensor


@triton.jit
def weigh_experts_kernel(
    weights, experts, scales, out, num_entries, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Scale the weights of BLOCK entries; those without an expert have 0."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < num_entries
    begin(PDL)
    expert = tl.load(experts + entry, mask=inside, other=-1)
    scale = tl.load(scales + expert, mask=expert >= 0, other=0.0)
    weight = tl.load(weights + entry, mask=expert >= 0, other=0.0)
    tl.store(out + entry, weight * scale, mask=inside)


class Routing:
    """Routing on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def route_topk(
        self, logits_TE: Tensor, *, k: int, is_normalized: bool
    ) -> tuple[Tensor, Tensor]:
        """See :func:`headstock.ops.moe.route_topk`."""
        num_tokens, num_experts = logits_TE.shape
        if logits_TE.stride(1) != 1:
            logits_TE = logits_TE.contiguous()
        where = logits_TE.device
        weights_Tk = torch.empty((num_tokens, k), dtype=torch.float32, device=where)
        experts_Tk = torch.empty((num_tokens, k), dtype=torch.int32, device=where)
        if num_tokens:
            route_topk_kernel[(num_tokens,)](
                logits_TE,
                weights_Tk,
                experts_Tk,
                logits_TE.stride(0),
                num_experts,
                K=k,
                BLOCK_E=next_power_of_2(num_experts),
                BLOCK_K=next_power_of_2(k),
                NORMALIZED=is_normalized,
                NONE=NO_EXPERT,
                **self._target.launch(1),
            )
        return weights_Tk, experts_Tk

    def weigh_experts(self, weights_Tk: Tensor, experts_Tk: Tensor, scale_E: Tensor) -> Tensor:
        """See :func:`headstock.ops.routing.weigh_experts`."""
        weights_Tk, experts_Tk = weights_Tk.contiguous(), experts_Tk.contiguous()
        out_Tk = torch.empty_like(weights_Tk)
        if out_Tk.numel():
            block = 256
            weigh_experts_kernel[(cdiv(out_Tk.numel(), block),)](
                weights_Tk,
                experts_Tk,
                scale_E,
                out_Tk,
                out_Tk.numel(),
                BLOCK=block,
                **self._target.launch(1),
            )
        return out_Tk

    def line_up(self, experts_Tk: Tensor, num_experts: int, block_m: int) -> LineUp:
        """Order the entries by expert, in tiles of ``block_m`` rows."""
        num_entries, where = experts_Tk.numel(), experts_Tk.device
        chunk = CHUNK if num_entries < MANY_ENTRIES else LARGE_CHUNK
        num_chunks = cdiv(num_entries, chunk)
        # Each expert that has an entry may leave one tile partly empty.
        num_tiles = num_entries // block_m + min(num_entries, num_experts)
        block_e = next_power_of_2(num_experts)
        counts = torch.empty((num_chunks, block_e), dtype=torch.int32, device=where)
        entries_N = torch.empty(num_entries, dtype=torch.int32, device=where)
        tiles_L3 = torch.empty((num_tiles, TILE_COLUMNS), dtype=torch.int32, device=where)
        experts_Tk = experts_Tk.contiguous()
        shape = {"BLOCK_E": block_e, "CHUNK": chunk, "PIECE": PIECE}
        options = self._target.launch(cdiv(block_e, 128))
        if num_chunks > 1:
            count_entries_kernel[(num_chunks,)](experts_Tk, counts, num_entries, **shape, **options)
        line_up_kernel[(num_chunks,)](
            experts_Tk,
            counts,
            entries_N,
            tiles_L3,
            num_entries,
            num_chunks,
            num_tiles,
            BLOCK_M=block_m,
            IS_ONE=num_chunks == 1,
            **shape,
            **options,
        )
        return LineUp(entries_N, tiles_L3)
