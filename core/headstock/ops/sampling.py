"""From logits to token ids, on the device. Nothing here depends on a row's neighbours.

All are resolved with dtype float32 and the size ``vocab_size``.

Shapes: S rows that sample, V token ids, B entries of a padded list.
Draws are counter-based on (seed, output index), so that a replayed request draws the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op
from headstock.requests.sampling import GREEDY_BELOW

_MASK32 = 0xFFFFFFFF


@op()
def apply_penalties(
    logits_SV: Tensor,
    output_counts_SV: Tensor,
    prompt_mask_SV: Tensor,
    repetition_S: Tensor,
    frequency_S: Tensor,
    presence_S: Tensor,
) -> Tensor:
    """Lower the logits of tokens that the request already has; may work in place.

    Args:
        logits_SV: float32. [S, V]
        output_counts_SV: How often each id was generated. int32. [S, V]
        prompt_mask_SV: Whether each id is in the prompt. bool. [S, V]
        repetition_S: Divides positive and multiplies negative logits of ids that occur in prompt
            or output; 1 is off. [S]
        frequency_S: Subtracted once per generated occurrence; 0 is off. [S]
        presence_S: Subtracted once if generated; 0 is off. [S]

    Returns:
        [S, V]

    Source:
        Keskar et al. 2019, "CTRL", section 4.1 (repetition); OpenAI API reference (the others).
    """
    is_output_SV = output_counts_SV > 0
    factor_SV = torch.where(is_output_SV | prompt_mask_SV, repetition_S[:, None], 1.0)
    logits_SV = torch.where(logits_SV > 0, logits_SV / factor_SV, logits_SV * factor_SV)
    logits_SV = logits_SV - output_counts_SV * frequency_S[:, None]
    return logits_SV - is_output_SV * presence_S[:, None]


@op()
def add_bias(logits_SV: Tensor, ids_SB: Tensor, biases_SB: Tensor) -> Tensor:
    """Add to the logits of listed ids; may work in place.

    Args:
        logits_SV: float32. [S, V]
        ids_SB: Ids; padding entries have any valid id and bias 0. int64. [S, B]
        biases_SB: float32; -inf forbids an id. [S, B]

    Returns:
        [S, V]
    """
    return logits_SV.scatter_add(1, ids_SB, biases_SB)


@op()
def argmax_tokens(logits_SV: Tensor) -> Tensor:
    """Return the id of each row's highest logit; of equals, the lowest id. int64. [S]"""
    return logits_SV.argmax(dim=-1)


@op()
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

    Filters apply one after another, to the probabilities after temperature: top-k (ties of the
    k-th stay), top-p (the likeliest ids until their sum reaches p), min-p (ids under min_p times
    the likeliest). A row with temperature 0 gets its highest logit.

    Args:
        logits_SV: float32. [S, V]
        temperature_S: 0 is greedy. float32. [S]
        top_k_S: -1 is off. int32. [S]
        top_p_S: 1 is off. float32. [S]
        min_p_S: 0 is off. float32. [S]
        seeds_S: int64. [S]
        indexes_S: Which output token this is. int64. [S]

    Returns:
        int64. [S]

    Source:
        Fan et al. 2018 (top-k); Holtzman et al. 2019 (top-p); Nguyen et al. 2024 (min-p).
    """
    kept_SV = filtered_probs(logits_SV, temperature_S, top_k_S, top_p_S, min_p_S)
    sums_SV = kept_SV.cumsum(dim=-1)
    threshold_S1 = uniform(seeds_S, indexes_S)[:, None] * sums_SV[:, -1:]
    drawn_S = sums_SV.shape[-1] - (sums_SV > threshold_S1).sum(dim=-1)
    last_S = kept_SV.shape[-1] - 1 - (kept_SV.flip(1) > 0).int().argmax(dim=-1)
    drawn_S = torch.minimum(drawn_S, last_S)
    return torch.where(temperature_S < GREEDY_BELOW, logits_SV.argmax(dim=-1), drawn_S)


def filtered_probs(
    logits_SV: Tensor, temperature_S: Tensor, top_k_S: Tensor, top_p_S: Tensor, min_p_S: Tensor
) -> Tensor:
    """Return the probabilities that :func:`draw_tokens` draws from: 0 where filtered out. [S, V]

    They do not add up to 1 when something is filtered.
    """
    scale_S = torch.where(temperature_S < GREEDY_BELOW, 1.0, temperature_S)
    probs_SV = torch.softmax(logits_SV / scale_S[:, None], dim=-1)
    ranked_SV, order_SV = probs_SV.sort(dim=-1, descending=True, stable=True)
    size = probs_SV.shape[-1]
    k_S = torch.where(top_k_S < 1, size, top_k_S).clamp(max=size).long()
    kth_S1 = ranked_SV.gather(1, k_S[:, None] - 1)
    before_SV = ranked_SV.cumsum(dim=-1) - ranked_SV
    is_kept_SV = (before_SV < top_p_S[:, None]) | (top_p_S[:, None] >= 1)
    is_kept_SV &= ranked_SV >= kth_S1
    is_kept_SV &= ranked_SV >= min_p_S[:, None] * ranked_SV[:, :1]
    return torch.zeros_like(probs_SV).scatter(1, order_SV, ranked_SV * is_kept_SV)


@op()
def token_logprobs(
    logits_SV: Tensor, ids_S: Tensor, asked_SB: Tensor, *, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-probabilities of chosen, likeliest and asked ids under the model.

    Args:
        logits_SV: Before penalties, bias and temperature. float32. [S, V]
        ids_S: The chosen ids. int64. [S]
        asked_SB: Other ids of interest. int64. [S, B]
        k: How many of the likeliest; may be 0.

    Returns:
        Of the chosen [S]; of the k likeliest, best first [S, k]; their ids, int64 [S, k]; of the
        asked [S, B]. Natural logs, float32.
    """
    logprobs_SV = torch.log_softmax(logits_SV, dim=-1)
    top_SK, top_ids_SK = logprobs_SV.topk(k, dim=-1)
    chosen_S = logprobs_SV.gather(1, ids_S[:, None]).squeeze(1)
    return chosen_S, top_SK, top_ids_SK, logprobs_SV.gather(1, asked_SB)


def uniform(seeds_S: Tensor, indexes_S: Tensor) -> Tensor:
    """Return one number in [0, 1) for each (seed, index): the same on every device.

    Philox-4x32-10 with the seed as key and (index low, index high, 0, 0) as counter; the first
    output word's upper 24 bits make the number.

    Args:
        seeds_S: int64. [S]
        indexes_S: int64, not negative. [S]

    Returns:
        float32. [S]

    Source:
        Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    key0, key1 = seeds_S & _MASK32, (seeds_S >> 32) & _MASK32
    c0, c1 = indexes_S & _MASK32, (indexes_S >> 32) & _MASK32
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    for _ in range(10):
        high0, low0 = _multiply32(c0, 0xD2511F53)
        high1, low1 = _multiply32(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & _MASK32, (key1 + 0xBB67AE85) & _MASK32
    return (c0 >> 8).to(torch.float32) * 2.0**-24


def _multiply32(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and low words of the 64-bit product of two 32-bit words.

    In halves, since int64 has no room for an unsigned 64-bit product.
    """
    low = x * (factor & 0xFFFF)
    high = x * (factor >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
