"""What references have in common whose rows keep one state each: pieces, beginnings, convolutions.

Shapes: R rows, N tokens of each, C convolved features, W tokens of the convolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from headstock.ops.attention import StepBatch


def causal_conv(
    x_RNC: Tensor,
    weight_CW: Tensor,
    before_RXC: Tensor,
    bias_C: Tensor | None = None,
    *,
    has_silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """Convolve each feature with its last tokens, then silu.

    Args:
        x_RNC: Tokens of each row. [R, N, C]
        weight_CW: The newest token's last. [C, W]
        before_RXC: The W - 1 tokens before them. float32. [R, W - 1, C]
        bias_C: Added before silu; None: nothing. [C]
        has_silu: Whether silu follows.

    Returns:
        The same shape as ``x_RNC``, and the last W - 1 tokens, float32.
    """
    num_tokens, width = x_RNC.shape[1], weight_CW.shape[1]
    seen_RYC = torch.cat((before_RXC, x_RNC.float()), dim=1)
    parts = [seen_RYC[:, i : i + num_tokens] * weight_CW[:, i].float() for i in range(width)]
    y_RNC = torch.stack(parts).sum(dim=0)
    if bias_C is not None:
        y_RNC = y_RNC + bias_C.float()
    y_RNC = functional.silu(y_RNC) if has_silu else y_RNC
    return y_RNC.to(x_RNC.dtype), seen_RYC[:, num_tokens:]


def begun(found: Tensor, is_new_R: Tensor) -> Tensor:
    """Return what rows begin with: what was found, or zeros. [R, ...]"""
    return torch.where(is_new_R.view(-1, *(1 for _ in found.shape[1:])), 0, found)


def is_new(batch: StepBatch) -> Tensor:
    """Return which rows have no token before the step. bool. [R]"""
    return batch.kv_lengths_R <= batch.query_starts_R1.diff()[: batch.num_rows]


def state_pieces(batch: StepBatch) -> list[tuple[slice, slice]]:
    """Return rows to compute at once, with their tokens: those of one token, others alone.

    Steps of one token a row need nothing of the host, and can be captured.
    """
    if batch.max_query == 1:
        return [(slice(0, batch.num_rows), slice(0, batch.num_rows))]
    assert batch.host_rows, "a step with rows of several tokens cannot be captured here"
    found: list[tuple[slice, slice]] = []
    begin = 0
    for row, (num_queries, _) in enumerate(batch.host_rows):
        found.append((slice(row, row + 1), slice(begin, begin + num_queries)))
        begin += num_queries
    return found
