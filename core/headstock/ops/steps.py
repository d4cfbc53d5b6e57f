"""What surrounds the model in a step: from the slot table to its inputs, from drawn ids back.

These run inside captured steps, hence they are ops: a device that records a step sees them all.
They write into the tensors of the structs that they are given, and return the same structs: what a
plan changes later is written into those tensors, and captured steps read them. A device that is
functional makes new values below the tensors; the tensors stay.

Shapes: S slots, the last of which is the null slot of padding rows; T tokens of the step; R rows;
P pages a row can have; E stop ids a slot can have; V token ids; N steps that the outbox keeps;
K tokens drafted a row; J = K + 1 positions that a row draws from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.base import op

if TYPE_CHECKING:
    from headstock.ops.attention import StepBatch

FAULTY = -1
"""Stands for the id of a draw whose logits are not numbers; in the outbox, for a row's count."""
LAST_ID = -1
"""Among a step's host ids: the slot's last drawn id."""
FIRST_DRAFT = -2
"""Among a step's host ids: the slot's first draft; draft ``i`` is ``FIRST_DRAFT - i``."""
NO_DRAFT = -1
"""Among a slot's drafts: there is none here, nor further on."""


@dataclass(slots=True, kw_only=True)
class Slots:
    """What the device keeps of each request.

    Attributes:
        lengths_S: Tokens whose state the slot's pages hold. int32.
        last_ids_S: The last drawn id. int32.
        done_S: Not 0: nothing more is computed for the slot. int32.
        max_outputs_S: Outputs after which a slot is done. int32.
        min_outputs_S: Outputs before which it does not stop. int32.
        top_k_S: int32.
        adapters_S: Place of its adapter; 0: none. int32.
        seeds_S: int64.
        num_outputs_S: Outputs drawn. int64.
        temperature_S, top_p_S, min_p_S, repetition_S, frequency_S, presence_S: float32.
        stop_ids_SE: Ids after which it is done; -1 where there is none. int32.
        drafts_SK: Drafted tokens, ``NO_DRAFT`` past the last. int32.
        tables: Page table of each group. int32. [S, P] each
        page_sizes: Tokens a page of each group holds; 0: its pages are states.
        cursor_1: Steps that drew, so far. int64.
    """

    lengths_S: Tensor
    last_ids_S: Tensor
    done_S: Tensor
    max_outputs_S: Tensor
    min_outputs_S: Tensor
    top_k_S: Tensor
    adapters_S: Tensor
    seeds_S: Tensor
    num_outputs_S: Tensor
    temperature_S: Tensor
    top_p_S: Tensor
    min_p_S: Tensor
    repetition_S: Tensor
    frequency_S: Tensor
    presence_S: Tensor
    stop_ids_SE: Tensor
    drafts_SK: Tensor
    tables: tuple[Tensor, ...]
    page_sizes: tuple[int, ...]
    cursor_1: Tensor


@dataclass(slots=True, kw_only=True)
class StepInputs:
    """The rows of a step as the host gave them, padded.

    Attributes:
        slots_R: Whose row it is; the null slot for padding rows. int32.
        draw_slots_R: Likewise, the null slot for rows that draw nothing, too. int32.
        num_draws_R: Positions that the row draws from, its last ones; at least 1. int32.
        query_starts_R1: Where each row's tokens begin. int32. [R + 1]
        host_ids_T: Token ids; ``LAST_ID`` or less: from the slot. int32.
    """

    slots_R: Tensor
    draw_slots_R: Tensor
    num_draws_R: Tensor
    query_starts_R1: Tensor
    host_ids_T: Tensor


@op()
def place_step(
    slots: Slots, inputs: StepInputs, ids_T: Tensor, batch: StepBatch
) -> tuple[Tensor, StepBatch]:
    """Work out what a step computes from the slot table.

    Rows of slots that are done, the null slot among them, write to page 0, and see what is there
    without adding to it. Tokens past the last row belong to the last row, a padding one.

    Args:
        slots: The slot table. Read.
        inputs: The step's rows. Read.
        ids_T: Written: what is embedded. int64. [T]
        batch: Written: ``positions_T``, ``row_of_token_T``, ``kv_lengths_R`` (with this step's
            tokens), ``adapters_R`` where it has them, and of each of its groups the page tables
            and, unless its pages are states, the write slots.

    Returns:
        ``ids_T`` and ``batch``, written.
    """
    device, slots_R, starts_R1 = ids_T.device, inputs.slots_R, inputs.query_starts_R1
    tokens_T = torch.arange(ids_T.shape[0], dtype=torch.int32, device=device)
    # A token's row is the number of rows that end at or before it: no size depends on data.
    rows_T = (starts_R1[1:, None] <= tokens_T).sum(dim=0)
    is_real_T = rows_T < slots_R.shape[0]
    rows_T = rows_T.clamp(max=slots_R.shape[0] - 1)
    is_live_R = slots.done_S.index_select(0, slots_R) == 0
    lengths_R = slots.lengths_S.index_select(0, slots_R)
    grown_R = lengths_R + starts_R1[1:] - starts_R1[:-1]
    slots_T = slots_R.index_select(0, rows_T)
    is_live_T = is_live_R.index_select(0, rows_T) & is_real_T
    offsets_T = tokens_T - starts_R1.index_select(0, rows_T)
    # Rows that are done stand at place 0: any place past their pages would be read out of bounds.
    places_T = torch.where(is_live_T, lengths_R.index_select(0, rows_T) + offsets_T, 0).long()
    _write(ids_T, _ids(slots, inputs.host_ids_T, slots_T))
    _write(batch.positions_T, places_T)
    _write(batch.row_of_token_T, rows_T)
    _write(batch.kv_lengths_R, torch.where(is_live_R, grown_R, lengths_R.clamp(min=1)))
    if batch.adapters_R is not None:
        _write(batch.adapters_R, slots.adapters_S.index_select(0, slots_R))
    for view, table_SP, size in zip(batch.groups, slots.tables, slots.page_sizes, strict=True):
        pages_RP = table_SP[:, : view.page_table_RP.shape[1]].index_select(0, slots_R)
        if size == 0:  # the row writes the whole page: one that is done must not write its own
            _write(view.page_table_RP, torch.where(is_live_R[:, None], pages_RP, 0))
            continue
        pages_T = table_SP[slots_T.long(), places_T // size].long()
        _write(view.page_table_RP, pages_RP)
        _write(view.write_slots_T, torch.where(is_live_T, pages_T * size + places_T % size, 0))
    return ids_T, batch


def _write(into: Tensor, values: Tensor) -> None:
    into.copy_(values)


def _ids(slots: Slots, host_ids_T: Tensor, slots_T: Tensor) -> Tensor:
    """Return what is embedded: host ids, last ids, or drafts, 0 where there is none. [T]"""
    ids_T = torch.where(host_ids_T < 0, slots.last_ids_S.index_select(0, slots_T), host_ids_T)
    if slots.drafts_SK.shape[1] == 0:
        return ids_T
    draft_T = (FIRST_DRAFT - host_ids_T).clamp(min=0, max=slots.drafts_SK.shape[1] - 1)
    drafts_T = slots.drafts_SK[slots_T.long(), draft_T.long()].clamp(min=0)
    return torch.where(host_ids_T <= FIRST_DRAFT, drafts_T, ids_T)


@op()
def take_rows(x: Tensor, index_R: Tensor, *, dim: int) -> Tensor:
    """Return the slices of ``x`` that ``index_R`` (int32 or int64) names along ``dim``."""
    return x.index_select(dim, index_R)


@op()
def last_of_rows(x_TD: Tensor, query_starts_R1: Tensor) -> Tensor:
    """Return what each row's last token has. [R, D]"""
    return x_TD.index_select(0, query_starts_R1[1:] - 1)


@op()
def keep_rows(x_RV: Tensor, into_RV: Tensor) -> None:
    """Copy ``x_RV`` into a buffer that outlives the step."""
    into_RV.copy_(x_RV)


@op()
def forbid_stops(
    logits_RV: Tensor, stop_ids_RE: Tensor, num_outputs_R: Tensor, min_outputs_R: Tensor
) -> Tensor:
    """Make stop ids impossible for rows that have fewer outputs than they must.

    Args:
        logits_RV: float32. [R, V]
        stop_ids_RE: int32; padding entries are negative. [R, E]
        num_outputs_R: int64. [R]
        min_outputs_R: int32. [R]

    Returns:
        [R, V]
    """
    is_early_R1 = (num_outputs_R < min_outputs_R).unsqueeze(1)
    is_out_RE = is_early_R1 & (stop_ids_RE >= 0)
    penalties_RE = torch.where(is_out_RE, -torch.inf, 0.0).to(logits_RV.dtype)
    return logits_RV.scatter_add(1, stop_ids_RE.clamp(min=0).long(), penalties_RE)


@op()
def apply_masks(logits_RV: Tensor, words_RW: Tensor) -> Tensor:
    """Make ids impossible whose bit is not set.

    Args:
        logits_RV: float32. [R, V]
        words_RW: Bit ``v % 32`` of word ``v // 32`` allows id ``v``. int32. [R, ceil(V / 32)]

    Returns:
        [R, V]
    """
    ids_V = torch.arange(logits_RV.shape[1], device=logits_RV.device)
    bits_RV = words_RW.index_select(1, ids_V // 32) >> (ids_V % 32) & 1
    return logits_RV.masked_fill(bits_RV == 0, -torch.inf)


@op()
def mark_faults(drawn_R: Tensor, logits_RV: Tensor) -> Tensor:
    """Return the drawn ids, and :data:`FAULTY` where the drawn id's logit is not finite.

    Args:
        drawn_R: int64. [R]
        logits_RV: What they were drawn from. float32. [R, V]

    Returns:
        int64. [R]
    """
    chosen_R = logits_RV.gather(1, drawn_R.unsqueeze(1)).squeeze(1)
    return torch.where(chosen_R.isfinite(), drawn_R, FAULTY)


@op()
def count_outputs(
    drawn_R: Tensor, slots_R: Tensor, done_S: Tensor, output_counts_SV: Tensor
) -> None:
    """Count the drawn ids of slots that are not done; before :func:`settle_step`.

    Args:
        drawn_R: int64; negative ones do not count. [R]
        slots_R: Whose they are. int32. [R]
        done_S: int32. [S]
        output_counts_SV: Written. int32. [S, V]
    """
    is_live_R = (done_S.index_select(0, slots_R) == 0) & (drawn_R >= 0)
    where = (slots_R.long(), drawn_R.clamp(min=0))
    output_counts_SV.index_put_(where, is_live_R.to(output_counts_SV.dtype), accumulate=True)


@op()
def advance_lengths(slots: Slots, inputs: StepInputs, batch: StepBatch) -> Slots:
    """Enter the lengths that the forward pass has reached for slots that are not done.

    Runs before :func:`settle_step`, which takes back what drafts that proved wrong have added.

    Args:
        slots: ``lengths_S`` is written.
        inputs: The step's rows.
        batch: Has their lengths with this step's tokens.

    Returns:
        ``slots``, written.
    """
    slots_R = inputs.slots_R
    was_done_R = slots.done_S.index_select(0, slots_R) != 0
    before_R = slots.lengths_S.index_select(0, slots_R)
    kept_R = torch.where(was_done_R, before_R, batch.kv_lengths_R)
    slots.lengths_S.index_copy_(0, slots_R.long(), kept_R)
    return slots


@op()
def take_draws(
    x_TD: Tensor, query_starts_R1: Tensor, num_draws_R: Tensor, *, num_draws: int
) -> Tensor:
    """Return what the positions have that rows draw from, ``num_draws`` of each row.

    Rows that draw from fewer have their last one repeated.

    Args:
        x_TD: Of every token. [T, D]
        query_starts_R1: int32. [R + 1]
        num_draws_R: int32. [R]
        num_draws: J.

    Returns:
        [R * J, D]
    """
    steps_J = torch.arange(num_draws, dtype=torch.int32, device=x_TD.device)
    first_R1 = (query_starts_R1[1:] - num_draws_R)[:, None]
    index_RJ = first_R1 + torch.minimum(steps_J[None, :], num_draws_R[:, None] - 1)
    return x_TD.index_select(0, index_RJ.flatten())


@op()
def spread_draws(
    slots_R: Tensor, num_outputs_S: Tensor, *, num_draws: int
) -> tuple[Tensor, Tensor]:
    """Return, of every position that rows draw from, its slot and the index of its output.

    Args:
        slots_R: int32. [R]
        num_outputs_S: int64. [S]
        num_draws: J.

    Returns:
        int32 [R * J], int64 [R * J]
    """
    steps_J = torch.arange(num_draws, device=slots_R.device)
    outputs_RJ = num_outputs_S.index_select(0, slots_R)[:, None] + steps_J
    return slots_R.repeat_interleave(num_draws), outputs_RJ.flatten()


@op()
def accept_drafts(drawn_RJ: Tensor, drafts_RK: Tensor, num_draws_R: Tensor) -> Tensor:
    """Return how many of a row's draws count: those up to the first that is not its draft.

    Every position is drawn from its own distribution with the random number of its output index.
    A draft that equals what was drawn there changes nothing, so drafting is lossless: greedy and
    sampled outputs are those of a request without drafts.

    Args:
        drawn_RJ: Ids. int64. [R, J]
        drafts_RK: What was computed after position ``i``; ``NO_DRAFT``: none. int32. [R, K]
        num_draws_R: Positions that the row draws from. int32. [R]

    Returns:
        1 to J. int32. [R]
    """
    steps_K = torch.arange(drafts_RK.shape[1], device=drawn_RJ.device)
    is_right_RK = (drawn_RJ[:, :-1] == drafts_RK) & (steps_K < num_draws_R[:, None] - 1)
    is_kept_RK = (~is_right_RK).long().cumsum(dim=1) == 0
    return 1 + is_kept_RK.sum(dim=1).to(torch.int32)


@op()
def settle_step(
    drawn_RJ: Tensor, accepted_R: Tensor, slots: Slots, inputs: StepInputs, outbox_NRO: Tensor
) -> tuple[Slots, Tensor]:
    """Enter what a step drew into the slot table and the outbox.

    Of the accepted ids those past the first stop id or fault, or past the slot's last output, do
    not count.

    Args:
        drawn_RJ: Ids, or :data:`FAULTY`. int64. [R, J]
        accepted_R: How many of them count, at most. int32. [R]
        slots: Written: ``last_ids_S``, ``num_outputs_S``, ``done_S``, ``cursor_1``, and where J is
            above 1 ``lengths_S``, which wrong drafts leave.
        inputs: The step's rows.
        outbox_NRO: Written at entry ``cursor_1 % N``: how many ids count (0: the slot was done;
            :data:`FAULTY`), whether the slot is done now, the ids. int32. [N, R, 2 + J or more]

    Returns:
        ``slots`` and ``outbox_NRO``, written.
    """
    where_R = inputs.draw_slots_R.long()
    is_live_R = slots.done_S.index_select(0, where_R) == 0
    steps_J = torch.arange(drawn_RJ.shape[1], device=drawn_RJ.device)
    before_R = slots.num_outputs_S.index_select(0, where_R)
    left_R = slots.max_outputs_S.index_select(0, where_R) - before_R
    stops_RE = slots.stop_ids_SE.index_select(0, where_R)
    is_stop_RJ = (stops_RE[:, None, :] == drawn_RJ[:, :, None]).any(dim=2) | (drawn_RJ < 0)
    stops_RJ = is_stop_RJ.long()
    # The stop itself counts, what comes behind it does not: stops before this place alone.
    is_past_RJ = stops_RJ.cumsum(dim=1) - stops_RJ > 0
    # Rows that are done have none left: one is counted, so that count - 1 is a place, and ignored.
    counts_RJ = (steps_J < accepted_R[:, None]) & (steps_J < left_R.clamp(min=1)[:, None])
    counts_RJ &= ~is_past_RJ
    count_R = counts_RJ.sum(dim=1)
    is_faulty_R = (counts_RJ & (drawn_RJ < 0)).any(dim=1)
    num_outputs_R = torch.where(is_live_R, before_R + count_R, before_R)
    is_full_R = num_outputs_R >= slots.max_outputs_S.index_select(0, where_R)
    is_done_R = ~is_live_R | is_faulty_R | (counts_RJ & is_stop_RJ).any(dim=1) | is_full_R
    last_R = drawn_RJ.gather(1, (count_R - 1)[:, None]).squeeze(1).to(torch.int32)
    kept_R = slots.last_ids_S.index_select(0, where_R)
    last_R = torch.where(is_live_R & ~is_faulty_R, last_R, kept_R)
    if drawn_RJ.shape[1] > 1:
        # advance_lengths has added all of the row's queries, wrong drafts among them.
        lengths_R = slots.lengths_S.index_select(0, where_R)
        wrong_R = torch.where(is_live_R, inputs.num_draws_R - count_R, 0)
        slots.lengths_S.index_copy_(0, where_R, (lengths_R - wrong_R).to(torch.int32))
    slots.last_ids_S.index_copy_(0, where_R, last_R)
    slots.num_outputs_S.index_copy_(0, where_R, num_outputs_R)
    slots.done_S.index_copy_(0, where_R, is_done_R.to(torch.int32))

    codes_R = torch.where(is_live_R, torch.where(is_faulty_R, FAULTY, count_R), 0)
    entry_RO = torch.cat((torch.stack((codes_R, is_done_R.long()), dim=1), drawn_RJ), dim=1)
    row_N = slots.cursor_1 % outbox_NRO.shape[0]
    outbox_NRO[..., : entry_RO.shape[1]].index_copy_(0, row_N, entry_RO.to(torch.int32)[None])
    slots.cursor_1.add_(1)
    return slots, outbox_NRO
