"""Drafting on the device, one launch an op: histories, look-ups in them, and what was right.

Shapes as in :mod:`headstock.ops.drafts`: S slots, R rows, L tokens of a request, K drafts, N
entries of the outbox.
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

from headstock.ops.steps import FAULTY, NO_DRAFT
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.steps import Slots, StepInputs

LOOKED_AT = 2048
"""Tokens of a history that a program compares at once."""
COPIED = 2048
"""Features of a hidden state that a program copies."""


@triton.jit
def accept_drafts_kernel(
    drawn, drafts, num_draws, accepted, drafts_stride, DRAFTS: tl.constexpr, PDL: tl.constexpr
):
    """Count the right drafts of row ``program_id(0)``, up to the first wrong one."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    most = tl.load(num_draws + row) - 1
    count = 1
    is_right = most >= 0
    for k in tl.static_range(DRAFTS):
        token = tl.load(drawn + row * (DRAFTS + 1) + k)
        draft = tl.load(drafts + row * drafts_stride + k)
        is_right = is_right & (k < most) & (token == draft)
        count += is_right.to(tl.int32)
    tl.store(accepted + row, count)


@triton.jit
def keep_accepted_kernel(drawn, accepted, kept, DRAWS: tl.constexpr, PDL: tl.constexpr):
    """Keep the draws of row ``program_id(0)`` that count; the others are faulty."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(accepted + row)
    for j in tl.static_range(DRAWS):
        token = tl.load(drawn + row * DRAWS + j)
        tl.store(kept + row * DRAWS + j, tl.where(j < count, token, -1))


@triton.jit
def count_drafts_kernel(
    counts, drafts, stride, drafts_stride, DRAFTS: tl.constexpr, PDL: tl.constexpr
):
    """Count the drafts before position ``program_id(1)`` + 1 of row ``program_id(0)``."""
    begin(PDL)
    row, before = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line = counts + (row * (DRAFTS + 1) + before + 1) * stride
    for k in tl.static_range(DRAFTS):
        draft = tl.load(drafts + row * drafts_stride + k)
        tl.atomic_add(line + draft, 1, mask=(k <= before) & (draft >= 0))


@triton.jit
def take_draws_kernel(
    x,
    query_starts,
    num_draws,
    taken,
    stride,
    D,
    DRAWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Copy BLOCK features of draw ``program_id(0)`` from its position."""
    begin(PDL)
    draw = tl.program_id(0).to(tl.int64)
    row = draw // DRAWS
    count = tl.load(num_draws + row)
    place = tl.load(query_starts + row + 1) - count + tl.minimum(draw % DRAWS, count - 1)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < D
    line = tl.load(x + place.to(tl.int64) * stride + columns, mask=inside)
    tl.store(taken + draw * D + columns, line, mask=inside)


@triton.jit
def spread_draws_kernel(
    slots, num_outputs, spread, outputs, DRAWS: tl.constexpr, PDL: tl.constexpr
):
    """Write slot and output index of each draw of row ``program_id(0)``."""
    begin(PDL)
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    first = tl.load(num_outputs + slot)
    for j in tl.static_range(DRAWS):
        tl.store(spread + row * DRAWS + j, slot)
        tl.store(outputs + row * DRAWS + j, first + j)


@triton.jit(do_not_specialize=["stride"])
def append_outputs_kernel(
    histories,
    lengths,
    slots,
    outbox,
    cursor,
    known,
    stride,
    outbox_stride,
    outbox_row_stride,
    ENTRIES: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Append what row ``program_id(0)`` drew to its slot's history, unless it is done."""
    begin(PDL)
    row = tl.program_id(0)
    step = (tl.load(cursor) + ENTRIES - 1) % ENTRIES
    entry = outbox + step * outbox_stride + row * outbox_row_stride
    count = tl.load(entry)
    is_live = (count > 0) & (tl.load(entry + 1) == 0)
    slot = tl.load(slots + row).to(tl.int64)
    length = tl.where(is_live, tl.load(lengths + slot) + 1, 0)
    tl.store(known + row, length)
    j = tl.arange(0, BLOCK)
    inside = is_live & (j < count) & (j < WORDS - 2)
    token = tl.load(entry + 2 + j, mask=inside, other=0)
    tl.store(histories + slot * stride + length - count + j, token, mask=inside)


@triton.jit(do_not_specialize=["stride"])
def draft_ngrams_kernel(
    histories,
    slots,
    known,
    drafts,
    stride,
    MAX_N: tl.constexpr,
    MIN_N: tl.constexpr,
    DRAFTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Look up the last tokens of row ``program_id(0)`` in its history, the whole of it.

    A key is the length of a match and, for equal ones, where it ends, later places first.
    """
    begin(PDL)
    row = tl.program_id(0)
    history = histories + tl.load(slots + row).to(tl.int64) * stride
    last = tl.load(known + row) - 1
    best = tl.full((BLOCK,), -1, tl.int64)
    for first in range(0, last, BLOCK):
        place = first + tl.arange(0, BLOCK)
        is_equal = place < last
        matched = tl.zeros((BLOCK,), tl.int64)
        for back in tl.static_range(MAX_N):
            inside = is_equal & (place >= back)
            token = tl.load(history + last - back, mask=last >= back, other=0)
            earlier = tl.load(history + place - back, mask=inside, other=0)
            is_equal = inside & (earlier == token)
            matched += is_equal.to(tl.int64)
        key = tl.where(matched >= MIN_N, (matched << 32) + place, -1)
        best = tl.maximum(best, key)
    found = tl.max(best, axis=0)
    place = (found & 0x7FFFFFFF).to(tl.int32)
    period = tl.maximum(last - place, 1)
    k = tl.arange(0, BLOCK_K)
    is_found = (found >= 0) & (k < DRAFTS)
    draft = tl.load(history + place + 1 + k % period, mask=is_found, other=-1)
    tl.store(drafts + row * DRAFTS + k, draft, mask=k < DRAFTS)


@triton.jit
def enter_drafts_kernel(
    drafts,
    slots,
    slot_drafts,
    outbox,
    cursor,
    vocab_size,
    outbox_stride,
    outbox_row_stride,
    ENTRIES: tl.constexpr,
    WORDS: tl.constexpr,
    DRAFTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Enter the drafts of row ``program_id(0)``, up to the first that is no id, and their count."""
    begin(PDL)
    row = tl.program_id(0)
    step = (tl.load(cursor) + ENTRIES - 1) % ENTRIES
    slot = tl.load(slots + row).to(tl.int64)
    count = 0
    is_draft = slot >= 0
    for k in tl.static_range(DRAFTS):
        draft = tl.load(drafts + row * DRAFTS + k)
        is_draft = is_draft & (draft >= 0) & (draft < vocab_size)
        tl.store(slot_drafts + slot * DRAFTS + k, tl.where(is_draft, draft, -1))
        count += is_draft.to(tl.int32)
    tl.store(outbox + step * outbox_stride + row * outbox_row_stride + WORDS - 1, count)


class Drafts:
    """The drafting ops on one target."""

    def __init__(self, target: Target) -> None:
        assert NO_DRAFT == FAULTY == -1, "the kernels spell it out"
        self._target = target

    def accept_drafts(self, drawn_RJ: Tensor, drafts_RK: Tensor, num_draws_R: Tensor) -> Tensor:
        """See :func:`headstock.ops.steps.accept_drafts`."""
        num_rows, num_drafts = drafts_RK.shape
        accepted_R = torch.empty((num_rows,), dtype=torch.int32, device=drawn_RJ.device)
        accept_drafts_kernel[(num_rows,)](
            drawn_RJ,
            drafts_RK,
            num_draws_R,
            accepted_R,
            drafts_RK.stride(0),
            DRAFTS=num_drafts,
            **self._target.launch(1),
        )
        return accepted_R

    def keep_accepted(self, drawn_RJ: Tensor, accepted_R: Tensor) -> Tensor:
        """See :func:`headstock.ops.drafts.keep_accepted`."""
        num_rows, num_draws = drawn_RJ.shape
        kept_S = torch.empty((num_rows * num_draws,), dtype=torch.int64, device=drawn_RJ.device)
        keep_accepted_kernel[(num_rows,)](
            drawn_RJ.contiguous(), accepted_R, kept_S, DRAWS=num_draws, **self._target.launch(1)
        )
        return kept_S

    def count_drafts(self, counts_SV: Tensor, drafts_RK: Tensor) -> Tensor:
        """See :func:`headstock.ops.drafts.count_drafts`; in place."""
        num_rows, num_drafts = drafts_RK.shape
        count_drafts_kernel[(num_rows, num_drafts)](
            counts_SV,
            drafts_RK,
            counts_SV.stride(0),
            drafts_RK.stride(0),
            DRAFTS=num_drafts,
            **self._target.launch(1),
        )
        return counts_SV

    def take_draws(
        self, x_TD: Tensor, query_starts_R1: Tensor, num_draws_R: Tensor, *, num_draws: int
    ) -> Tensor:
        """See :func:`headstock.ops.steps.take_draws`."""
        num_places, size = num_draws_R.shape[0] * num_draws, x_TD.shape[1]
        taken_SD = torch.empty((num_places, size), dtype=x_TD.dtype, device=x_TD.device)
        block = min(COPIED, next_power_of_2(size))
        take_draws_kernel[(num_places, cdiv(size, block))](
            x_TD,
            query_starts_R1,
            num_draws_R,
            taken_SD,
            x_TD.stride(0),
            size,
            DRAWS=num_draws,
            BLOCK=block,
            **self._target.launch(4),
        )
        return taken_SD

    def spread_draws(
        self, slots_R: Tensor, num_outputs_S: Tensor, *, num_draws: int
    ) -> tuple[Tensor, Tensor]:
        """See :func:`headstock.ops.steps.spread_draws`."""
        num_rows, device = slots_R.shape[0], slots_R.device
        spread_S = torch.empty((num_rows * num_draws,), dtype=torch.int32, device=device)
        outputs_S = torch.empty((num_rows * num_draws,), dtype=torch.int64, device=device)
        spread_draws_kernel[(num_rows,)](
            slots_R,
            num_outputs_S,
            spread_S,
            outputs_S,
            DRAWS=num_draws,
            **self._target.launch(1),
        )
        return spread_S, outputs_S

    def append_outputs(
        self, histories_SL: Tensor, slots: Slots, inputs: StepInputs, outbox_NRO: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :func:`headstock.ops.drafts.append_outputs`."""
        num_entries, num_rows, num_words = outbox_NRO.shape
        known_R = torch.empty((num_rows,), dtype=torch.int32, device=histories_SL.device)
        append_outputs_kernel[(num_rows,)](
            histories_SL,
            slots.lengths_S,
            inputs.draw_slots_R,
            outbox_NRO,
            slots.cursor_1,
            known_R,
            histories_SL.stride(0),
            outbox_NRO.stride(0),
            outbox_NRO.stride(1),
            ENTRIES=num_entries,
            WORDS=num_words,
            BLOCK=next_power_of_2(num_words),
            **self._target.launch(1),
        )
        return histories_SL, known_R

    def draft_ngrams(
        self,
        histories_SL: Tensor,
        slots_R: Tensor,
        known_R: Tensor,
        *,
        max_n: int,
        min_n: int,
        num_drafts: int,
    ) -> Tensor:
        """See :func:`headstock.ops.drafts.draft_ngrams`."""
        num_rows = slots_R.shape[0]
        shape = (num_rows, num_drafts)
        drafts_RK = torch.empty(shape, dtype=torch.int32, device=histories_SL.device)
        draft_ngrams_kernel[(num_rows,)](
            histories_SL,
            slots_R,
            known_R,
            drafts_RK,
            histories_SL.stride(0),
            MAX_N=max_n,
            MIN_N=min_n,
            DRAFTS=num_drafts,
            BLOCK=min(LOOKED_AT, next_power_of_2(histories_SL.shape[1])),
            BLOCK_K=next_power_of_2(num_drafts),
            **self._target.launch(8),
        )
        return drafts_RK

    def enter_drafts(
        self,
        drafts_RK: Tensor,
        slots: Slots,
        inputs: StepInputs,
        outbox_NRO: Tensor,
        *,
        vocab_size: int,
    ) -> tuple[Slots, Tensor]:
        """See :func:`headstock.ops.drafts.enter_drafts`."""
        num_rows, num_drafts = drafts_RK.shape
        enter_drafts_kernel[(num_rows,)](
            drafts_RK.contiguous(),
            inputs.draw_slots_R,
            slots.drafts_SK,
            outbox_NRO,
            slots.cursor_1,
            vocab_size,
            outbox_NRO.stride(0),
            outbox_NRO.stride(1),
            ENTRIES=outbox_NRO.shape[0],
            WORDS=outbox_NRO.shape[2],
            DRAFTS=num_drafts,
            **self._target.launch(1),
        )
        return slots, outbox_NRO
