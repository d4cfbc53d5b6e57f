"""What changes logits before a draw: penalties and biases, in place, and masks.

Shapes: S rows, V ids, B biases of a row.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

PENALTY_BLOCK = 2048
BIAS_BLOCK = 64


@triton.jit
def apply_penalties_kernel(
    logits,
    output_counts,
    prompt_mask,
    repetition,
    frequency,
    presence,
    stride,
    counts_stride,
    mask_stride,
    V,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Lower BLOCK logits of row ``program_id(0)``, if it has penalties; write those that change."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    factor, per_output = tl.load(repetition + row), tl.load(frequency + row)
    once = tl.load(presence + row)
    if (factor == 1.0) & (per_output == 0.0) & (once == 0.0):
        return
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < V
    count = tl.load(output_counts + row * counts_stride + ids, mask=inside, other=0)
    is_output = count > 0
    occurs = is_output | (tl.load(prompt_mask + row * mask_stride + ids, mask=inside, other=0) != 0)
    x = tl.load(logits + row * stride + ids, mask=occurs, other=0.0)
    x = tl.where(x > 0, tl.div_rn(x, factor), x * factor)
    x = x - count.to(tl.float32) * per_output - tl.where(is_output, once, 0.0)
    tl.store(logits + row * stride + ids, x, mask=occurs)


@triton.jit
def add_bias_kernel(
    logits,
    ids,
    biases,
    stride,
    ids_stride,
    biases_stride,
    B,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Add BLOCK biases of row ``program_id(0)``.

    An id named more than once gets the sum of its biases from the program that has the first, so
    that no other program writes it and the sum has one order. Biases of 0, padding, take no part.
    """
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    logits, ids, biases = (
        logits + row * stride,
        ids + row * ids_stride,
        biases + row * biases_stride,
    )
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(biases + at, mask=at < B, other=0.0)
    counts = own != 0.0
    if tl.max(counts.to(tl.int32), axis=0) == 0:
        return
    own_ids = tl.load(ids + at, mask=counts, other=0)
    total = tl.zeros([BLOCK], tl.float32)
    earlier = tl.zeros([BLOCK], tl.int32)
    for begins in range(0, B, BLOCK):
        others = begins + tl.arange(0, BLOCK)
        bias = tl.load(biases + others, mask=others < B, other=0.0)
        if tl.max((bias != 0.0).to(tl.int32), axis=0) > 0:
            other_ids = tl.load(ids + others, mask=others < B, other=0)
            is_same = (own_ids[:, None] == other_ids[None, :]) & (bias != 0.0)[None, :]
            total += tl.sum(tl.where(is_same, bias[None, :], 0.0), axis=1)
            is_earlier = is_same & (others[None, :] < at[:, None])
            earlier += tl.sum(is_earlier.to(tl.int32), axis=1)
    is_first = counts & (earlier == 0)
    x = tl.load(logits + own_ids, mask=is_first, other=0.0)
    tl.store(logits + own_ids, x + total, mask=is_first)


@triton.jit
def apply_masks_kernel(
    logits, words, masked, stride, words_stride, V, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Write BLOCK logits of row ``program_id(0)``, -inf where an id's bit is not set."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < V
    word = tl.load(words + row * words_stride + ids // 32, mask=inside, other=0)
    x = tl.load(logits + row * stride + ids, mask=inside, other=0.0)
    is_set = (word >> (ids % 32)) & 1
    tl.store(masked + row * V + ids, tl.where(is_set != 0, x, float("-inf")), mask=inside)


class Shaping:
    """Penalties, biases and masks on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def apply_penalties(
        self,
        logits_SV: Tensor,
        output_counts_SV: Tensor,
        prompt_mask_SV: Tensor,
        repetition_S: Tensor,
        frequency_S: Tensor,
        presence_S: Tensor,
    ) -> Tensor:
        """See :func:`headstock.ops.sampling.apply_penalties`."""
        num_rows, size = logits_SV.shape
        if num_rows:
            apply_penalties_kernel[(num_rows, cdiv(size, PENALTY_BLOCK))](
                logits_SV,
                output_counts_SV,
                prompt_mask_SV,
                repetition_S,
                frequency_S,
                presence_S,
                logits_SV.stride(0),
                output_counts_SV.stride(0),
                prompt_mask_SV.stride(0),
                size,
                BLOCK=PENALTY_BLOCK,
                **self._target.launch(4),
            )
        return logits_SV

    def apply_masks(self, logits_RV: Tensor, words_RW: Tensor) -> Tensor:
        """See :func:`headstock.ops.steps.apply_masks`."""
        num_rows, size = logits_RV.shape
        masked_RV = torch.empty((num_rows, size), dtype=logits_RV.dtype, device=logits_RV.device)
        if num_rows:
            apply_masks_kernel[(num_rows, cdiv(size, PENALTY_BLOCK))](
                logits_RV,
                words_RW,
                masked_RV,
                logits_RV.stride(0),
                words_RW.stride(0),
                size,
                BLOCK=PENALTY_BLOCK,
                **self._target.launch(4),
            )
        return masked_RV

    def add_bias(self, logits_SV: Tensor, ids_SB: Tensor, biases_SB: Tensor) -> Tensor:
        """See :func:`headstock.ops.sampling.add_bias`."""
        num_rows, width = ids_SB.shape
        if num_rows and width:
            block = min(BIAS_BLOCK, next_power_of_2(width))
            add_bias_kernel[(num_rows, cdiv(width, block))](
                logits_SV,
                ids_SB,
                biases_SB,
                logits_SV.stride(0),
                ids_SB.stride(0),
                biases_SB.stride(0),
                width,
                BLOCK=block,
                **self._target.launch(4),
            )
        return logits_SV
