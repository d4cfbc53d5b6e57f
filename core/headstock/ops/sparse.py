"""What is left of features of which only the highest count. Shapes: T tokens, F features.

In two ops, so that ranks can add up sums in between.
Source: ``Gemma3nTextMLP._gaussian_topk`` of Hugging Face transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op


@op()
def sum_moments(x_TF: Tensor) -> Tensor:
    """Return the sums of each token's features and of their squares.

    Args:
        x_TF: [T, F]

    Returns:
        float32. [T, 2]
    """
    x32_TF = x_TF.float()
    return torch.stack((x32_TF.sum(1), x32_TF.square().sum(1)), dim=1)


@op()
def keep_above(x_TF: Tensor, sums_T2: Tensor, *, width: int, deviations: float) -> Tensor:
    """Return how far features are above a threshold; 0: they are not.

    Args:
        x_TF: [T, F]
        sums_T2: Of :func:`sum_moments`, over all ranks. float32. [T, 2]
        width: Features over all ranks.
        deviations: How far the threshold is from the mean, in standard deviations of the token's
            features.

    Returns:
        In the dtype of ``x_TF``. [T, F]
    """
    mean_T1, square_T1 = (sums_T2 / width).split(1, dim=1)
    deviation_T1 = (square_T1 - mean_T1.square()).clamp(min=0).sqrt()
    return (x_TF.float() - (mean_T1 + deviation_T1 * deviations)).relu().to(x_TF.dtype)
