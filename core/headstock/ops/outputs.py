"""What is done to the outputs of matrix products. Shapes: T tokens, A and B features."""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op


@op()
def join_features(left_TA: Tensor, right_TB: Tensor) -> Tensor:
    """Return both side by side: outputs of one layer whose weights are kept in two layouts.

    Args:
        left_TA: [T, A]
        right_TB: In the same dtype. [T, B]

    Returns:
        [T, A + B]
    """
    return torch.cat((left_TA, right_TB), dim=-1)


@op()
def as_float32(x_TA: Tensor) -> Tensor:
    """Return ``x_TA`` in float32, itself where that is what it has. [T, A]"""
    return x_TA.to(torch.float32)


@op()
def soft_cap(x_TA: Tensor, *, cap: float) -> Tensor:
    """Return cap · tanh(x / cap): nearly x where it is small, and never past ``cap``. [T, A]

    Source:
        Gemma Team 2024, "Gemma 2", section 2.
    """
    return torch.tanh(x_TA / cap) * cap


@op()
def rectify(x_TA: Tensor) -> Tensor:
    """Return ``x_TA`` with 0 for what is below 0. [T, A]"""
    return torch.relu(x_TA)
