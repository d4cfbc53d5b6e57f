"""From logits to ids by operators of CANN that can be captured, all of them through PyTorch.

CANN's own samplers draw otherwise than Headstock does: ``npu_top_k_top_p_sample`` cannot be
captured and has a generator of its own, ``npu_top_k_top_p`` takes a top-k of 1,024 at most and sums
what top-k left. So a draw is composed here, without what is slow on an NPU: a row is sorted by
value alone, ids never move, and nothing is scattered over the vocabulary.

Shapes: S rows that sample, V token ids, B entries of a padded list, W words of 32 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.sampling import uniform
from headstock.requests.sampling import GREEDY_BELOW

WORD = 32
"""Ids that a word of a mask tells of."""


def apply_penalties(
    logits_SV: Tensor,
    output_counts_SV: Tensor,
    prompt_mask_SV: Tensor,
    repetition_S: Tensor,
    frequency_S: Tensor,
    presence_S: Tensor,
) -> Tensor:
    """Lower the logits of tokens that the request already has. [S, V]"""
    is_output_SV = output_counts_SV > 0
    factor_SV = torch.where(is_output_SV | prompt_mask_SV, repetition_S[:, None], 1.0)
    logits_SV = torch.where(logits_SV > 0, logits_SV / factor_SV, logits_SV * factor_SV)
    logits_SV.addcmul_(output_counts_SV.to(logits_SV.dtype), frequency_S[:, None], value=-1)
    return logits_SV.addcmul_(is_output_SV.to(logits_SV.dtype), presence_S[:, None], value=-1)


def add_bias(logits_SV: Tensor, ids_SB: Tensor, biases_SB: Tensor) -> Tensor:
    """Add to the logits of listed ids, in place. [S, V]"""
    return logits_SV.scatter_add_(1, ids_SB, biases_SB)


def apply_masks(logits_RV: Tensor, words_RW: Tensor) -> Tensor:
    """Make ids impossible whose bit is not set: every word is spread to its 32 ids. [R, V]"""
    places = torch.arange(WORD, dtype=torch.int32, device=words_RW.device)
    bits_RV = ((words_RW.unsqueeze(-1) >> places) & 1).flatten(1)[:, : logits_RV.shape[1]]
    return logits_RV.masked_fill(bits_RV == 0, -torch.inf)


def argmax_tokens(logits_SV: Tensor) -> Tensor:
    """Return the id of each row's highest logit; of equals, the lowest id. int64. [S]

    CANN does not say which of equals its own argmax finds. What is not a number counts as the
    highest, as in PyTorch, so that a faulty row is seen.
    """
    size = logits_SV.shape[-1]
    ids_V = torch.arange(size, dtype=torch.int32, device=logits_SV.device)
    is_best_SV = (logits_SV == logits_SV.amax(dim=-1, keepdim=True)) | logits_SV.isnan()
    return torch.where(is_best_SV, ids_V, size - 1).amin(dim=-1).long()


def draw_tokens(
    logits_SV: Tensor,
    temperature_S: Tensor,
    top_k_S: Tensor,
    top_p_S: Tensor,
    min_p_S: Tensor,
    seeds_S: Tensor,
    indexes_S: Tensor,
) -> Tensor:
    """Draw one id a row by inverse transform over the filtered distribution, in id order.

    Rows with temperature 0, and those with what is not a number, get their highest logit.
    int64. [S]
    """
    is_greedy_S = temperature_S < GREEDY_BELOW
    scale_S = torch.where(is_greedy_S, 1.0, temperature_S)
    probs_SV = torch.softmax(logits_SV / scale_S[:, None], dim=-1)
    kept_SV = keep_likeliest(probs_SV, top_k_S, top_p_S, min_p_S)
    sums_SV = kept_SV.cumsum(dim=-1)
    totals_S1 = sums_SV[:, -1:]
    threshold_S1 = uniform(seeds_S, indexes_S)[:, None] * totals_S1
    drawn_S = (sums_SV <= threshold_S1).sum(dim=-1)
    # Rounding may end the sums at the threshold: the last id that stays covers it.
    ids_V = torch.arange(kept_SV.shape[-1], dtype=torch.int32, device=kept_SV.device)
    last_S = torch.where(kept_SV > 0, ids_V, 0).amax(dim=-1)
    drawn_S = torch.minimum(drawn_S, last_S)
    totals_S = totals_S1.squeeze(1)
    is_drawn_S = ~is_greedy_S & totals_S.isfinite() & (totals_S > 0)
    return torch.where(is_drawn_S, drawn_S, argmax_tokens(logits_SV))


def keep_likeliest(probs_SV: Tensor, top_k_S: Tensor, top_p_S: Tensor, min_p_S: Tensor) -> Tensor:
    """Return the probabilities, 0 where a filter takes an id out. [S, V]

    What stays is what is more likely than the least likely id that stays, and of those equal to
    it the first in id order, as many as top-p leaves.
    """
    size = probs_SV.shape[-1]
    ranked_SV = probs_SV.sort(dim=-1, descending=True).values
    k_S = torch.where(top_k_S < 1, size, top_k_S).clamp(max=size).long()
    before_SV = ranked_SV.cumsum(dim=-1) - ranked_SV
    stays_SV = (before_SV < top_p_S[:, None]) | (top_p_S[:, None] >= 1)
    floor_S1 = torch.maximum(
        ranked_SV.gather(1, k_S[:, None] - 1), min_p_S[:, None] * ranked_SV[:, :1]
    )
    stays_SV &= ranked_SV >= floor_S1
    number_S1 = stays_SV.sum(dim=-1, keepdim=True).clamp(min=1)
    least_S1 = ranked_SV.gather(1, number_S1 - 1)
    num_equal_S1 = (stays_SV & (ranked_SV == least_S1)).sum(dim=-1, keepdim=True)
    is_equal_SV = probs_SV == least_S1
    is_among_SV = is_equal_SV & (is_equal_SV.cumsum(dim=-1) <= num_equal_S1)
    return probs_SV.masked_fill(~(is_among_SV | (probs_SV > least_S1)), 0.0)


def token_logprobs(
    logits_SV: Tensor, ids_S: Tensor, asked_SB: Tensor, *, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-probabilities of chosen, likeliest and asked ids under the model.

    Only those are made: a row's logarithm of its sum is taken off what is looked up.
    """
    sums_S1 = logits_SV.logsumexp(dim=-1, keepdim=True)
    top_SK, top_ids_SK = logits_SV.topk(k, dim=-1)
    chosen_S = (logits_SV.gather(1, ids_S[:, None]) - sums_S1).squeeze(1)
    return chosen_S, top_SK - sums_S1, top_ids_SK, logits_SV.gather(1, asked_SB) - sums_S1
