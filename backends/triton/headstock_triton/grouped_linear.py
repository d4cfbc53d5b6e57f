"""Products of groups of features: by the vendor's library, which writes them side by side.

Shapes: T tokens, G groups, I features of a group, O outputs of each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def multiply_groups(x_TX: Tensor, weight_GOI: Tensor) -> Tensor:
    """See :func:`headstock.ops.grouped_linear.multiply_groups`."""
    groups, outputs, _ = weight_GOI.shape
    out_TGO = x_TX.new_empty((x_TX.shape[0], groups, outputs))
    x_GTI = x_TX.unflatten(1, (groups, -1)).transpose(0, 1)
    torch.bmm(x_GTI, weight_GOI.transpose(1, 2), out=out_TGO.transpose(0, 1))
    return out_TGO.flatten(1)
