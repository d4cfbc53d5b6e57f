"""Hidden states of several streams, of which a layer computes one and predicts the others.

Streams of a token lie side by side. Shapes: T tokens, A streams, D hidden size, C = A D.
Source: Baykal et al. 2023, "Alternating Updates for Efficient Transformers".
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op

LEAST_SQUARE = 1e-5
"""Least mean square of what is brought to another magnitude."""


@op()
def predict_streams(x_TC: Tensor, coefs_TB: Tensor, *, num_streams: int) -> Tensor:
    """Return each stream plus a sum of all of them, which the token's coefficients weigh.

    Args:
        x_TC: [T, A D]
        coefs_TB: Those of the first stream's sum, then the second's …, in the same dtype. [T, A A]
        num_streams: A.

    Returns:
        [T, A D]

    Source:
        ``Gemma3nTextAltUp.predict`` of Hugging Face transformers.
    """
    x_TAD = x_TC.unflatten(1, (num_streams, -1))
    return x_TC + (coefs_TB.unflatten(1, (num_streams, -1)) @ x_TAD).flatten(1)


@op()
def correct_streams(x_TC: Tensor, computed_TD: Tensor, coefs_TA: Tensor) -> Tensor:
    """Add to each stream what the first one's prediction lacks, times 1 + its coefficient.

    Args:
        x_TC: Predictions. [T, A D]
        computed_TD: What the first stream has become, in the same dtype. [T, D]
        coefs_TA: In the same dtype. [T, A]

    Returns:
        [T, A D]

    Source:
        ``Gemma3nTextAltUp.correct`` of Hugging Face transformers.
    """
    lacking_TD = computed_TD - x_TC[:, : computed_TD.shape[1]]
    return x_TC + (lacking_TD.unsqueeze(1) * (coefs_TA + 1).unsqueeze(2)).flatten(1)


@op()
def add_to_others(x_TC: Tensor, y_TD: Tensor) -> Tensor:
    """Add the same to all streams but the first.

    Args:
        x_TC: [T, A D]
        y_TD: In the same dtype. [T, D]

    Returns:
        [T, A D]
    """
    size = y_TD.shape[1]
    others_TAD = x_TC[:, size:].unflatten(1, (-1, size)) + y_TD.unsqueeze(1)
    return torch.cat((x_TC[:, :size], others_TAD.flatten(1)), dim=1)


@op()
def match_magnitudes(x_TC: Tensor, like_TD: Tensor) -> Tensor:
    """Bring each stream to the root mean square of ``like_TD``.

    Args:
        x_TC: [T, A D]
        like_TD: In the same dtype. [T, D]

    Returns:
        [T, A D]

    Source:
        ``Gemma3nTextModel`` of Hugging Face transformers.
    """
    x_TAD = x_TC.unflatten(1, (-1, like_TD.shape[1])).float()
    own_TA1 = x_TAD.square().mean(2, keepdim=True).clamp(min=LEAST_SQUARE).sqrt()
    wanted_T11 = like_TD.float().square().mean(1)[:, None, None].sqrt()
    return (x_TAD * wanted_T11 / own_TA1).flatten(1).to(x_TC.dtype)


@op()
def mean_of_streams(x_TC: Tensor, *, num_streams: int) -> Tensor:
    """Return the mean of the streams, which is taken in float32.

    Args:
        x_TC: [T, A D]
        num_streams: A.

    Returns:
        In the dtype of ``x_TC``. [T, D]
    """
    return x_TC.unflatten(1, (num_streams, -1)).float().mean(1).to(x_TC.dtype)
