"""Products of groups of features, each with a matrix of its own.

Shapes: T tokens, G groups, I features of a group, O outputs of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op


@op()
def multiply_groups(x_TX: Tensor, weight_GOI: Tensor) -> Tensor:
    """Return each group's product, side by side.

    Resolved with the sizes ``num_groups``, ``in_features`` (I) and ``out_features`` (O).

    Args:
        x_TX: Features of all groups, side by side. [T, G I]
        weight_GOI: In the same dtype. [G, O, I]

    Returns:
        [T, G O]

    Source:
        ``DeepseekV4GroupedLinear`` of Hugging Face transformers.
    """
    x_TGI = x_TX.unflatten(1, (weight_GOI.shape[0], -1))
    return torch.einsum("tgi,goi->tgo", x_TGI, weight_GOI).flatten(1)
