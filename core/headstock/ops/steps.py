"""What surrounds the model in a step: from the slot table to its inputs, from drawn ids back.

These run inside captured steps, hence they are ops: a device that records a step sees them all.

Shapes: S slots, the last of which is the null slot of padding rows; T tokens of the step; R rows;
P pages a row can have; E stop ids a slot can have; V token ids; N steps that the outbox keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op
from headstock.ops.cases.steps import (
    advance_cases,
    count_cases,
    fault_cases,
    forbid_cases,
    keep_cases,
    last_cases,
    place_cases,
    settle_cases,
    take_cases,
)

FAULTY = -1
"""Stands for the id of a row whose logits are not numbers."""
WAS_DONE = -2
"""Stands for the id of a row whose slot was done before the step."""


@op(cases=place_cases)
def place_step(
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
    """Work out a step's inputs from the slot table. Writes the last six tensors.

    Rows of slots that are done, the null slot among them, write to page 0, and see what is there
    without adding to it. Tokens past the last row belong to the last row, a padding one.

    Args:
        slots_R: Whose row it is. int32. [R]
        query_starts_R1: Where each row's tokens begin. int32. [R + 1]
        host_ids_T: Token ids; negative: the slot's last one. int32. [T]
        lengths_S: Tokens whose keys and values the slot has. int32. [S]
        done_S: Not 0: nothing more is computed for the slot. int32. [S]
        last_ids_S: The last drawn id. int32. [S]
        page_table_SP: int32. [S, all pages]
        ids_T: Written: what is embedded. int64. [T]
        positions_T: Written. int64. [T]
        row_of_token_T: Written. int32. [T]
        write_slots_T: Written: page * page_size + offset. int64. [T]
        kv_lengths_R: Written: with this step's tokens. int32. [R]
        page_table_RP: Written. int32. [R, P]
        page_size: Tokens a page holds.
    """
    tokens_T = torch.arange(ids_T.shape[0], dtype=torch.int32, device=ids_T.device)
    rows_T = torch.searchsorted(query_starts_R1[1:].contiguous(), tokens_T, right=True)
    is_real_T = rows_T < slots_R.shape[0]
    rows_T = rows_T.clamp(max=slots_R.shape[0] - 1)
    is_live_R = done_S.index_select(0, slots_R) == 0
    lengths_R = lengths_S.index_select(0, slots_R)
    grown_R = lengths_R + query_starts_R1[1:] - query_starts_R1[:-1]
    kv_R = torch.where(is_live_R, grown_R, lengths_R.clamp(min=1))
    slots_T = slots_R.index_select(0, rows_T)
    is_live_T = is_live_R.index_select(0, rows_T) & is_real_T
    offsets_T = tokens_T - query_starts_R1.index_select(0, rows_T)
    places_T = torch.where(is_live_T, lengths_R.index_select(0, rows_T) + offsets_T, 0).long()
    pages_T = page_table_SP[slots_T.long(), places_T // page_size].long()
    last_T = last_ids_S.index_select(0, slots_T)
    ids_T.copy_(torch.where(host_ids_T < 0, last_T, host_ids_T))
    positions_T.copy_(places_T)
    row_of_token_T.copy_(rows_T)
    write_slots_T.copy_(torch.where(is_live_T, pages_T * page_size + places_T % page_size, 0))
    kv_lengths_R.copy_(kv_R)
    page_table_RP.copy_(page_table_SP[:, : page_table_RP.shape[1]].index_select(0, slots_R))


@op(cases=take_cases)
def take_rows(x: Tensor, index_R: Tensor, *, dim: int) -> Tensor:
    """Return the slices of ``x`` that ``index_R`` (int32 or int64) names along ``dim``."""
    return x.index_select(dim, index_R)


@op(cases=last_cases)
def last_of_rows(x_TD: Tensor, query_starts_R1: Tensor) -> Tensor:
    """Return what each row's last token has. [R, D]"""
    return x_TD.index_select(0, query_starts_R1[1:] - 1)


@op(cases=keep_cases)
def keep_rows(x_RV: Tensor, into_RV: Tensor) -> None:
    """Copy ``x_RV`` into a buffer that outlives the step."""
    into_RV.copy_(x_RV)


@op(cases=forbid_cases)
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


@op(cases=fault_cases)
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


@op(cases=count_cases)
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


@op(cases=advance_cases)
def advance_lengths(
    slots_R: Tensor, kv_lengths_R: Tensor, done_S: Tensor, lengths_S: Tensor
) -> None:
    """Let slots that are not done have the lengths they have reached; before :func:`settle_step`.

    Args:
        slots_R: Whose row it is. int32. [R]
        kv_lengths_R: Lengths with this step's tokens. int32. [R]
        done_S: int32. [S]
        lengths_S: Written. int32. [S]
    """
    was_done_R = done_S.index_select(0, slots_R) != 0
    kept_R = torch.where(was_done_R, lengths_S.index_select(0, slots_R), kv_lengths_R)
    lengths_S.index_copy_(0, slots_R.long(), kept_R)


@op(cases=settle_cases)
def settle_step(
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
    """Enter what a step drew into the slot table and the outbox.

    Args:
        drawn_R: Ids, or :data:`FAULTY`. int64. [R]
        slots_R: Whose they are; the null slot for rows that draw nothing. int32. [R]
        max_outputs_S: Outputs after which a slot is done. int32. [S]
        stop_ids_SE: Ids after which it is done; padding entries are negative. int32. [S, E]
        last_ids_S: Written. int32. [S]
        num_outputs_S: Written. int64. [S]
        done_S: Written. int32. [S]
        outbox_NR2: Written at entry ``cursor_1 % N``: the id, :data:`FAULTY` or
            :data:`WAS_DONE`; whether the slot is done now. int32. [N, R, 2]
        cursor_1: Written: one more. int64. [1]
    """
    where_R = slots_R.long()
    is_live_R = done_S.index_select(0, where_R) == 0
    num_outputs_R = num_outputs_S.index_select(0, where_R) + is_live_R
    is_stop_R = (stop_ids_SE.index_select(0, where_R) == drawn_R.unsqueeze(1)).any(dim=1)
    is_full_R = num_outputs_R >= max_outputs_S.index_select(0, where_R)
    is_faulty_R = drawn_R < 0
    is_done_R = ~is_live_R | is_faulty_R | is_stop_R | is_full_R
    before_R = last_ids_S.index_select(0, where_R)
    last_R = torch.where(is_live_R & ~is_faulty_R, drawn_R.to(torch.int32), before_R)
    last_ids_S.index_copy_(0, where_R, last_R)
    num_outputs_S.index_copy_(0, where_R, num_outputs_R)
    done_S.index_copy_(0, where_R, is_done_R.to(torch.int32))

    codes_R = torch.where(is_live_R, drawn_R, WAS_DONE)
    entry_R2 = torch.stack((codes_R, is_done_R.long()), dim=1).to(torch.int32)
    outbox_NR2.index_copy_(0, cursor_1 % outbox_NR2.shape[0], entry_R2.unsqueeze(0))
    cursor_1.add_(1)
