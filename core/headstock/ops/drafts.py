"""Drafting on the device: what a step drew joins the histories, and proposes what may follow.

These run at the end of a step, after :func:`headstock.ops.steps.settle_step`, inside captured
steps; the next step computes what was drafted (:func:`headstock.ops.steps.place_step`) and keeps of
it what is right (:func:`headstock.ops.steps.accept_drafts`).

Shapes: S slots, the last of which is the null slot of padding rows; R rows; L tokens of the longest
request; K tokens drafted a row; N steps that the outbox keeps; O words of its entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op
from headstock.ops.steps import FAULTY, NO_DRAFT, Slots, StepInputs


@op()
def append_outputs(
    histories_SL: Tensor, slots: Slots, inputs: StepInputs, outbox_NRO: Tensor
) -> tuple[Tensor, Tensor]:
    """Append what the step that settled last drew to the histories of its slots.

    A slot's history is its tokens, prompt then outputs: as many as its pages hold, and the last
    drawn one.

    Args:
        histories_SL: Written. int32. [S, L]
        slots: Read: ``lengths_S`` and ``cursor_1``, both of after the step.
        inputs: The step's rows.
        outbox_NRO: Read: what it drew. Rows that are done draw nothing further. int32. [N, R, O]

    Returns:
        ``histories_SL``, written, and how many tokens each row's history has; 0 for rows that draw
        nothing from here on. int32. [R]
    """
    where_R = inputs.draw_slots_R.long()
    entry_RO = outbox_NRO.index_select(0, (slots.cursor_1 - 1) % outbox_NRO.shape[0]).squeeze(0)
    is_live_R = (entry_RO[:, 0] > 0) & (entry_RO[:, 1] == 0)
    counts_R1 = entry_RO[:, 0].clamp(min=1).unsqueeze(1)
    known_R = torch.where(is_live_R, slots.lengths_S.index_select(0, where_R) + 1, 0)
    # An id that does not count repeats the last one that does: every word has one value.
    steps_J = torch.arange(outbox_NRO.shape[2] - 2, device=where_R.device)
    steps_RJ = torch.minimum(steps_J[None, :], counts_R1.long() - 1)
    ids_RJ = entry_RO[:, 2:].gather(1, steps_RJ)
    places_RJ = torch.where(is_live_R[:, None], known_R[:, None] - counts_R1 + steps_RJ, 0)
    slots_RJ = where_R[:, None].expand_as(places_RJ)
    kept_RJ = histories_SL[slots_RJ, places_RJ]
    histories_SL.index_put_((slots_RJ, places_RJ), torch.where(is_live_R[:, None], ids_RJ, kept_RJ))
    return histories_SL, known_R


@op()
def draft_ngrams(
    histories_SL: Tensor,
    slots_R: Tensor,
    known_R: Tensor,
    *,
    max_n: int,
    min_n: int,
    num_drafts: int,
) -> Tensor:
    """Draft what followed when a row's last tokens occurred before.

    Of the earlier places at which the last ``max_n`` tokens occurred, or else fewer of them, down
    to ``min_n``, the latest counts. Where fewer than ``num_drafts`` tokens follow it, they repeat:
    text with a period is drafted on with that period.

    Args:
        histories_SL: Tokens of each slot; past what is known anything. int32. [S, L]
        slots_R: Whose history each row's is. int32. [R]
        known_R: Tokens of it that are known; 0: the row wants no drafts. int32. [R]
        max_n: Longest match looked for. Tokens.
        min_n: Shortest match that counts, at least 1. Tokens.
        num_drafts: K.

    Returns:
        ``NO_DRAFT`` throughout where nothing matches. int32. [R, K]
    """
    history_RL = histories_SL.index_select(0, slots_R)
    places_L = torch.arange(history_RL.shape[1], device=history_RL.device)
    last_R1 = known_R.long().unsqueeze(1) - 1
    is_equal_RL = places_L[None, :] < last_R1
    matched_RL = torch.zeros_like(history_RL)
    for back in range(max_n):
        token_R1 = history_RL.gather(1, (last_R1 - back).clamp(min=0))
        earlier_RL = history_RL.roll(back, dims=1)
        is_equal_RL = is_equal_RL & (places_L >= back) & (earlier_RL == token_R1)
        matched_RL += is_equal_RL.to(matched_RL.dtype)
    length = history_RL.shape[1]
    keys_RL = torch.where(matched_RL >= min_n, matched_RL.long() * length + places_L, -1)
    best_R1 = keys_RL.amax(dim=1, keepdim=True)
    begin_R1 = best_R1 % length + 1
    steps_K = torch.arange(num_drafts, device=history_RL.device)
    period_R1 = (last_R1 + 1 - begin_R1).clamp(min=1)
    drafts_RK = history_RL.gather(1, (begin_R1 + steps_K % period_R1).clamp(max=length - 1))
    return torch.where(best_R1 >= 0, drafts_RK, NO_DRAFT).to(torch.int32)


@op()
def enter_drafts(
    drafts_RK: Tensor, slots: Slots, inputs: StepInputs, outbox_NRO: Tensor, *, vocab_size: int
) -> tuple[Slots, Tensor]:
    """Enter the drafts for the rows' next step into the slot table.

    Args:
        drafts_RK: Ids; what comes after the first that is none counts for nothing. int32. [R, K]
        slots: Written: ``drafts_SK``, of K columns. Read: ``cursor_1``.
        inputs: The step's rows.
        outbox_NRO: Written: how many drafts each row has, in the last word of the entry of the
            step that settled last. int32. [N, R, O]
        vocab_size: Ids that there are.

    Returns:
        ``slots`` and ``outbox_NRO``, written.
    """
    is_id_RK = (drafts_RK >= 0) & (drafts_RK < vocab_size)
    is_draft_RK = (~is_id_RK).long().cumsum(dim=1) == 0
    kept_RK = torch.where(is_draft_RK, drafts_RK, NO_DRAFT)
    slots.drafts_SK.index_copy_(0, inputs.draw_slots_R.long(), kept_RK)
    row_N = (slots.cursor_1 - 1) % outbox_NRO.shape[0]
    counts_1R = is_draft_RK.sum(dim=1).to(torch.int32).unsqueeze(0)
    outbox_NRO[..., -1].index_copy_(0, row_N, counts_1R)
    return slots, outbox_NRO


@op()
def count_drafts(counts_SV: Tensor, drafts_RK: Tensor) -> Tensor:
    """Count, for each position that a row draws from, the drafts before it as if they were drawn.

    What is drawn after a wrong draft does not count, so only right ones matter.

    Args:
        counts_SV: How often each id was drawn, of each position, K + 1 of each row, before the
            step. int32. [R * (K + 1), V]
        drafts_RK: ``NO_DRAFT`` past the last. int32. [R, K]

    Returns:
        [R * (K + 1), V]
    """
    steps_J = torch.arange(drafts_RK.shape[1] + 1, device=drafts_RK.device)
    is_before_JK = steps_J[:-1][None, :] < steps_J[:, None]
    counted_RJK = is_before_JK[None] & (drafts_RK >= 0)[:, None, :]
    ids_SK = drafts_RK.clamp(min=0).long()[:, None, :].expand_as(counted_RJK).flatten(0, 1)
    return counts_SV.scatter_add(1, ids_SK, counted_RJK.flatten(0, 1).to(counts_SV.dtype))


@op()
def keep_accepted(drawn_RJ: Tensor, accepted_R: Tensor) -> Tensor:
    """Return the draws, and :data:`~headstock.ops.steps.FAULTY` for those after the accepted ones.

    Args:
        drawn_RJ: Ids. int64. [R, J]
        accepted_R: How many of them count. int32. [R]

    Returns:
        One row after another. int64. [R * J]
    """
    steps_J = torch.arange(drawn_RJ.shape[1], device=drawn_RJ.device)
    return torch.where(steps_J < accepted_R[:, None], drawn_RJ, FAULTY).flatten()
