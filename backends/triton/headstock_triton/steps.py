"""What surrounds the model in a step, one launch an op where PyTorch would take many.

Shapes as in :mod:`headstock.ops.steps`: S slots, T tokens, R rows, P pages, E stop ids, N entries.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock.ops.steps import FAULTY, WAS_DONE
from headstock_triton.overlap import begin
from headstock_triton.target import Target, next_power_of_2

_CHANGING = ["R", "T", "table_stride"]


@triton.jit(do_not_specialize=_CHANGING)
def place_step_kernel(
    slots,
    query_starts,
    host_ids,
    lengths,
    done,
    last_ids,
    table,
    ids,
    positions,
    row_of_token,
    write_slots,
    kv_lengths,
    row_table,
    R,
    T,
    table_stride,
    row_table_stride,
    PAGES: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    """Place the tokens of row ``program_id(0)``; the last row's program takes what is past it."""
    begin(PDL)
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    start = tl.load(query_starts + row)
    end = tl.load(query_starts + row + 1)
    length = tl.load(lengths + slot)
    is_live = tl.load(done + slot) == 0
    tl.store(kv_lengths + row, tl.where(is_live, length + end - start, tl.maximum(length, 1)))
    last_id = tl.load(last_ids + slot).to(tl.int64)
    pages = table + slot * table_stride
    for first in range(0, PAGES, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        page_P = tl.load(pages + p, mask=p < PAGES, other=0)
        tl.store(row_table + row.to(tl.int64) * row_table_stride + p, page_P, mask=p < PAGES)
    covered = tl.where(row == R - 1, T, end)
    for first in range(start, covered, BLOCK_T):
        token = first + tl.arange(0, BLOCK_T)
        inside = token < covered
        is_real = (token < end) & is_live
        place = tl.where(is_real, length + token - start, 0)
        page = tl.load(pages + place // PAGE, mask=inside, other=0).to(tl.int64)
        host_id = tl.load(host_ids + token, mask=inside, other=0).to(tl.int64)
        tl.store(ids + token, tl.where(host_id < 0, last_id, host_id), mask=inside)
        tl.store(positions + token, place.to(tl.int64), mask=inside)
        tl.store(row_of_token + token, tl.zeros_like(token) + row, mask=inside)
        write_slot = tl.where(is_real, page * PAGE + place % PAGE, 0)
        tl.store(write_slots + token, write_slot, mask=inside)


@triton.jit
def last_of_rows_kernel(
    x, query_starts, out, stride, D: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Copy the last token's features of row ``program_id(0)``."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(query_starts + row + 1).to(tl.int64) - 1
    d = tl.arange(0, BLOCK)
    value = tl.load(x + token * stride + d, mask=d < D, other=0.0)
    tl.store(out + row * D + d, value, mask=d < D)


@triton.jit
def mark_faults_kernel(drawn, logits, out, stride, PDL: tl.constexpr):
    """Keep the drawn id of row ``program_id(0)`` if its logit is finite."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(drawn + row)
    logit = tl.load(logits + row * stride + token)
    is_finite = tl.abs(logit.to(tl.float32)) < float("inf")
    tl.store(out + row, tl.where(is_finite, token, -1))


@triton.jit
def advance_lengths_kernel(slots, kv_lengths, done, lengths, PDL: tl.constexpr):
    """Let the slot of row ``program_id(0)`` have its new length, unless it is done."""
    begin(PDL)
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    if tl.load(done + slot) == 0:
        tl.store(lengths + slot, tl.load(kv_lengths + row))


@triton.jit(do_not_specialize=["R"])
def settle_step_kernel(
    drawn,
    slots,
    max_outputs,
    stop_ids,
    last_ids,
    num_outputs,
    done,
    outbox,
    cursor,
    R,
    outbox_stride,
    ENTRIES: tl.constexpr,
    STOPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PDL: tl.constexpr,
):
    """Settle all rows in one program: they are few, and the cursor moves once."""
    begin(PDL)
    entry = tl.load(cursor)
    base = outbox + (entry % ENTRIES) * outbox_stride
    for first in range(0, R, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        inside = row < R
        slot = tl.load(slots + row, mask=inside, other=0).to(tl.int64)
        token = tl.load(drawn + row, mask=inside, other=0)
        is_live = tl.load(done + slot, mask=inside, other=1) == 0
        count = tl.load(num_outputs + slot, mask=inside, other=0) + is_live.to(tl.int64)
        e = tl.arange(0, BLOCK_E)
        stop_at = stop_ids + slot[:, None] * STOPS + e[None, :]
        stops = tl.load(stop_at, mask=inside[:, None] & (e < STOPS)[None, :], other=-1)
        is_stop = tl.max(((stops == token[:, None]) & (stops >= 0)).to(tl.int32), axis=1) > 0
        is_full = count >= tl.load(max_outputs + slot, mask=inside, other=0)
        is_faulty = token < 0
        is_done = (is_live == 0) | is_faulty | is_stop | is_full
        before = tl.load(last_ids + slot, mask=inside, other=0)
        kept = tl.where(is_live & (token >= 0), token.to(tl.int32), before)
        # Every read of the slots above comes before any write below: rows may share the null slot.
        tl.debug_barrier()
        tl.store(last_ids + slot, kept, mask=inside)
        tl.store(num_outputs + slot, count, mask=inside)
        tl.store(done + slot, is_done.to(tl.int32), mask=inside)
        tl.store(base + row * 2, tl.where(is_live, token, -2).to(tl.int32), mask=inside)
        tl.store(base + row * 2 + 1, is_done.to(tl.int32), mask=inside)
    tl.store(cursor, entry + 1)


class Steps:
    """The step ops on one target."""

    def __init__(self, target: Target) -> None:
        assert (FAULTY, WAS_DONE) == (-1, -2), "the kernels spell these out"
        self._target = target

    def place_step(
        self,
        slots_R: Tensor,
        query_starts_R1: Tensor,
        host_ids_T: Tensor,
        lengths_S: Tensor,
        done_S: Tensor,
        last_ids_S: Tensor,
        page_table_SP: Tensor,
        ids_T: Tensor,
        positions_T: Tensor,
        row_of_token_T: Tensor,
        write_slots_T: Tensor,
        kv_lengths_R: Tensor,
        page_table_RP: Tensor,
        *,
        page_size: int,
    ) -> None:
        """See :func:`headstock.ops.steps.place_step`."""
        num_rows, num_pages = page_table_RP.shape
        place_step_kernel[(num_rows,)](
            slots_R,
            query_starts_R1,
            host_ids_T,
            lengths_S,
            done_S,
            last_ids_S,
            page_table_SP,
            ids_T,
            positions_T,
            row_of_token_T,
            write_slots_T,
            kv_lengths_R,
            page_table_RP,
            num_rows,
            ids_T.shape[0],
            page_table_SP.stride(0),
            page_table_RP.stride(0),
            PAGES=num_pages,
            PAGE=page_size,
            BLOCK_P=min(512, next_power_of_2(num_pages)),
            BLOCK_T=128,
            **self._target.launch(4),
        )

    def last_of_rows(self, x_TD: Tensor, query_starts_R1: Tensor) -> Tensor:
        """See :func:`headstock.ops.steps.last_of_rows`."""
        num_rows, size = query_starts_R1.shape[0] - 1, x_TD.shape[1]
        out_RD = torch.empty((num_rows, size), dtype=x_TD.dtype, device=x_TD.device)
        last_of_rows_kernel[(num_rows,)](
            x_TD,
            query_starts_R1,
            out_RD,
            x_TD.stride(0),
            D=size,
            BLOCK=next_power_of_2(size),
            **self._target.launch(4),
        )
        return out_RD

    def mark_faults(self, drawn_R: Tensor, logits_RV: Tensor) -> Tensor:
        """See :func:`headstock.ops.steps.mark_faults`."""
        out_R = torch.empty_like(drawn_R)
        mark_faults_kernel[(drawn_R.shape[0],)](
            drawn_R, logits_RV, out_R, logits_RV.stride(0), **self._target.launch(1)
        )
        return out_R

    def advance_lengths(
        self, slots_R: Tensor, kv_lengths_R: Tensor, done_S: Tensor, lengths_S: Tensor
    ) -> None:
        """See :func:`headstock.ops.steps.advance_lengths`."""
        advance_lengths_kernel[(slots_R.shape[0],)](
            slots_R, kv_lengths_R, done_S, lengths_S, **self._target.launch(1)
        )

    def settle_step(
        self,
        drawn_R: Tensor,
        slots_R: Tensor,
        max_outputs_S: Tensor,
        stop_ids_SE: Tensor,
        last_ids_S: Tensor,
        num_outputs_S: Tensor,
        done_S: Tensor,
        outbox_NR2: Tensor,
        cursor_1: Tensor,
    ) -> None:
        """See :func:`headstock.ops.steps.settle_step`."""
        num_rows, stops = drawn_R.shape[0], stop_ids_SE.shape[1]
        settle_step_kernel[(1,)](
            drawn_R,
            slots_R,
            max_outputs_S,
            stop_ids_SE,
            last_ids_S,
            num_outputs_S,
            done_S,
            outbox_NR2,
            cursor_1,
            num_rows,
            outbox_NR2.stride(0),
            ENTRIES=outbox_NR2.shape[0],
            STOPS=stops,
            BLOCK_R=128,
            BLOCK_E=next_power_of_2(stops),
            **self._target.launch(4),
        )
