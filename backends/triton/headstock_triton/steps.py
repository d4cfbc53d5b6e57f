"""What surrounds the model in a step, one launch an op where PyTorch would take many.

Shapes as in :mod:`headstock.ops.steps`: S slots, T tokens, R rows, P pages, E stop ids, N entries.
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

from headstock.ops.steps import FAULTY, FIRST_DRAFT
from headstock_triton.overlap import begin
from headstock_triton.target import Target, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.attention import StepBatch
    from headstock.ops.steps import Slots, StepInputs

_KEPT_BLOCK = 4096
"""Numbers that a program copies."""
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
    drafts,
    slot_adapters,
    row_adapters,
    R,
    T,
    table_stride,
    row_table_stride,
    PAGES: tl.constexpr,
    PAGE: tl.constexpr,
    DRAFTS: tl.constexpr,
    HAS_ADAPTERS: tl.constexpr,
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
        is_read = (p < PAGES) & (is_live | (PAGE > 0))
        page_P = tl.load(pages + p, mask=is_read, other=0)
        tl.store(row_table + row.to(tl.int64) * row_table_stride + p, page_P, mask=p < PAGES)
    if HAS_ADAPTERS:
        tl.store(row_adapters + row, tl.load(slot_adapters + slot))
    covered = tl.where(row == R - 1, T, end)
    for first in range(start, covered, BLOCK_T):
        token = first + tl.arange(0, BLOCK_T)
        inside = token < covered
        is_real = (token < end) & is_live
        place = tl.where(is_real, length + token - start, 0)
        host_id = tl.load(host_ids + token, mask=inside, other=0).to(tl.int64)
        id_T = tl.where(host_id < 0, last_id, host_id)
        if DRAFTS > 0:
            is_draft = inside & (host_id <= -2)
            at = drafts + slot * DRAFTS + tl.minimum(-2 - host_id, DRAFTS - 1)
            draft = tl.load(at, mask=is_draft, other=0).to(tl.int64)
            id_T = tl.where(is_draft, tl.maximum(draft, 0), id_T)
        tl.store(ids + token, id_T, mask=inside)
        tl.store(positions + token, place.to(tl.int64), mask=inside)
        tl.store(row_of_token + token, tl.zeros_like(token) + row, mask=inside)
        if PAGE > 0:
            page = tl.load(pages + place // PAGE, mask=inside, other=0).to(tl.int64)
            write_slot = tl.where(is_real, page * PAGE + place % PAGE, 0)
            tl.store(write_slots + token, write_slot, mask=inside)


@triton.jit(do_not_specialize=_CHANGING)
def place_view_kernel(
    slots,
    query_starts,
    done,
    positions,
    table,
    write_slots,
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
    """Place row ``program_id(0)`` in another group, after the step was placed in the first."""
    begin(PDL)
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    start = tl.load(query_starts + row)
    end = tl.load(query_starts + row + 1)
    is_live = tl.load(done + slot) == 0
    pages = table + slot * table_stride
    for first in range(0, PAGES, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        is_read = (p < PAGES) & (is_live | (PAGE > 0))
        page_P = tl.load(pages + p, mask=is_read, other=0)
        tl.store(row_table + row.to(tl.int64) * row_table_stride + p, page_P, mask=p < PAGES)
    if PAGE > 0:
        covered = tl.where(row == R - 1, T, end)
        for first in range(start, covered, BLOCK_T):
            token = first + tl.arange(0, BLOCK_T)
            inside = token < covered
            is_real = (token < end) & is_live
            place = tl.load(positions + token, mask=inside, other=0)
            page = tl.load(pages + place // PAGE, mask=inside, other=0).to(tl.int64)
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
def keep_rows_kernel(
    x, into, x_stride, into_stride, V: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Copy a block of row ``program_id(0)``."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + row * x_stride + v, mask=v < V, other=0.0)
    tl.store(into + row * into_stride + v, value, mask=v < V)


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
    """Set the new length of the slot of row ``program_id(0)``, unless it is done."""
    begin(PDL)
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    if tl.load(done + slot) == 0:
        tl.store(lengths + slot, tl.load(kv_lengths + row))


@triton.jit(do_not_specialize=["R"])
def settle_step_kernel(
    drawn,
    accepted,
    slots,
    num_draws,
    max_outputs,
    stop_ids,
    last_ids,
    num_outputs,
    done,
    lengths,
    outbox,
    cursor,
    R,
    outbox_stride,
    outbox_row_stride,
    ENTRIES: tl.constexpr,
    STOPS: tl.constexpr,
    DRAWN: tl.constexpr,
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
        is_live = tl.load(done + slot, mask=inside, other=1) == 0
        before = tl.load(num_outputs + slot, mask=inside, other=0)
        most = tl.load(max_outputs + slot, mask=inside, other=0).to(tl.int64)
        count_most = tl.minimum(
            tl.load(accepted + row, mask=inside, other=0).to(tl.int64),
            tl.maximum(most - before, 1),
        )
        last = tl.load(last_ids + slot, mask=inside, other=0)
        e = tl.arange(0, BLOCK_E)
        stop_at = stop_ids + slot[:, None] * STOPS + e[None, :]
        stops = tl.load(stop_at, mask=inside[:, None] & (e < STOPS)[None, :], other=-1)
        out = base + row * outbox_row_stride
        count = tl.zeros_like(before)
        has_stop = tl.zeros_like(slot) > 0
        is_faulty = tl.zeros_like(slot) > 0
        kept = last
        for j in tl.static_range(DRAWN):
            token = tl.load(drawn + row * DRAWN + j, mask=inside, other=0)
            counts = (j < count_most) & (has_stop == 0)
            is_stop = tl.max(((stops == token[:, None]) & (stops >= 0)).to(tl.int32), axis=1) > 0
            count += counts.to(tl.int64)
            kept = tl.where(counts, token.to(tl.int32), kept)
            is_faulty = is_faulty | (counts & (token < 0))
            has_stop = has_stop | (counts & (is_stop | (token < 0)))
            tl.store(out + 2 + j, token.to(tl.int32), mask=inside)
        after = tl.where(is_live, before + count, before)
        is_done = (is_live == 0) | is_faulty | has_stop | (after >= most)
        kept = tl.where(is_live & (is_faulty == 0), kept, last)
        code = tl.where(is_live, tl.where(is_faulty, -1, count), 0)
        if DRAWN > 1:
            length = tl.load(lengths + slot, mask=inside, other=0)
            wrong = tl.load(num_draws + row, mask=inside, other=0) - count.to(tl.int32)
            length = tl.where(is_live, length - wrong, length)
        # Every read of the slots above comes before any write below: rows may share the null slot.
        tl.debug_barrier()
        if DRAWN > 1:
            tl.store(lengths + slot, length, mask=inside)
        tl.store(last_ids + slot, kept, mask=inside)
        tl.store(num_outputs + slot, after, mask=inside)
        tl.store(done + slot, is_done.to(tl.int32), mask=inside)
        tl.store(out, code.to(tl.int32), mask=inside)
        tl.store(out + 1, is_done.to(tl.int32), mask=inside)
    tl.store(cursor, entry + 1)


class Steps:
    """The step ops on one target."""

    def __init__(self, target: Target) -> None:
        assert (FAULTY, FIRST_DRAFT) == (-1, -2), "the kernels spell these out"
        self._target = target

    def place_step(
        self, slots: Slots, inputs: StepInputs, ids_T: Tensor, batch: StepBatch
    ) -> tuple[Tensor, StepBatch]:
        """See :func:`headstock.ops.steps.place_step`."""
        first, *others = zip(batch.groups, slots.tables, slots.page_sizes, strict=True)
        view, table_SP, page_size = first
        num_rows, num_pages = view.page_table_RP.shape
        has_adapters = batch.adapters_R is not None
        place_step_kernel[(num_rows,)](
            inputs.slots_R,
            inputs.query_starts_R1,
            inputs.host_ids_T,
            slots.lengths_S,
            slots.done_S,
            slots.last_ids_S,
            table_SP,
            ids_T,
            batch.positions_T,
            batch.row_of_token_T,
            view.write_slots_T,
            batch.kv_lengths_R,
            view.page_table_RP,
            slots.drafts_SK,
            slots.adapters_S,
            batch.adapters_R if has_adapters else slots.adapters_S,
            num_rows,
            ids_T.shape[0],
            table_SP.stride(0),
            view.page_table_RP.stride(0),
            PAGES=num_pages,
            PAGE=page_size,
            DRAFTS=slots.drafts_SK.shape[1],
            HAS_ADAPTERS=has_adapters,
            BLOCK_P=min(512, next_power_of_2(num_pages)),
            BLOCK_T=128,
            **self._target.launch(4),
        )
        for view, table_SP, page_size in others:
            num_pages = view.page_table_RP.shape[1]
            place_view_kernel[(num_rows,)](
                inputs.slots_R,
                inputs.query_starts_R1,
                slots.done_S,
                batch.positions_T,
                table_SP,
                view.write_slots_T,
                view.page_table_RP,
                num_rows,
                ids_T.shape[0],
                table_SP.stride(0),
                view.page_table_RP.stride(0),
                PAGES=num_pages,
                PAGE=page_size,
                BLOCK_P=min(512, next_power_of_2(num_pages)),
                BLOCK_T=128,
                **self._target.launch(4),
            )
        return ids_T, batch

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

    def keep_rows(self, x_RV: Tensor, into_RV: Tensor) -> None:
        """See :func:`headstock.ops.steps.keep_rows`.

        A kernel and no copy of the driver's: a graph with copies in it no longer lets one kernel
        begin while the one before it ends.
        """
        num_rows, size = x_RV.shape
        block = min(next_power_of_2(size), _KEPT_BLOCK)
        keep_rows_kernel[(num_rows, triton.cdiv(size, block))](
            x_RV,
            into_RV,
            x_RV.stride(0),
            into_RV.stride(0),
            V=size,
            BLOCK=block,
            **self._target.launch(4),
        )

    def mark_faults(self, drawn_R: Tensor, logits_RV: Tensor) -> Tensor:
        """See :func:`headstock.ops.steps.mark_faults`."""
        out_R = torch.empty_like(drawn_R)
        mark_faults_kernel[(drawn_R.shape[0],)](
            drawn_R, logits_RV, out_R, logits_RV.stride(0), **self._target.launch(1)
        )
        return out_R

    def advance_lengths(self, slots: Slots, inputs: StepInputs, batch: StepBatch) -> Slots:
        """See :func:`headstock.ops.steps.advance_lengths`."""
        advance_lengths_kernel[(inputs.slots_R.shape[0],)](
            inputs.slots_R,
            batch.kv_lengths_R,
            slots.done_S,
            slots.lengths_S,
            **self._target.launch(1),
        )
        return slots

    def settle_step(
        self,
        drawn_RJ: Tensor,
        accepted_R: Tensor,
        slots: Slots,
        inputs: StepInputs,
        outbox_NRO: Tensor,
    ) -> tuple[Slots, Tensor]:
        """See :func:`headstock.ops.steps.settle_step`."""
        num_rows, num_drawn = drawn_RJ.shape
        stops = slots.stop_ids_SE.shape[1]
        settle_step_kernel[(1,)](
            drawn_RJ,
            accepted_R,
            inputs.draw_slots_R,
            inputs.num_draws_R,
            slots.max_outputs_S,
            slots.stop_ids_SE,
            slots.last_ids_S,
            slots.num_outputs_S,
            slots.done_S,
            slots.lengths_S,
            outbox_NRO,
            slots.cursor_1,
            num_rows,
            outbox_NRO.stride(0),
            outbox_NRO.stride(1),
            ENTRIES=outbox_NRO.shape[0],
            STOPS=stops,
            DRAWN=num_drawn,
            BLOCK_R=128,
            BLOCK_E=next_power_of_2(stops),
            **self._target.launch(4),
        )
        return slots, outbox_NRO
