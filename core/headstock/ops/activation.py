"""Gated activations, resolved with the size ``size``: F.

Shapes: T tokens, F features of the feed-forward layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op
from headstock.ops.cases.activation import gated_cases


@op(cases=gated_cases)
def silu_and_mul(gate_up_TG: Tensor) -> Tensor:
    """Return silu(gate) * up, where gate and up are the halves of each row.

    Args:
        gate_up_TG: Gate features, then as many up features. [T, 2 F]

    Returns:
        [T, F]

    Source:
        Shazeer 2020, "GLU Variants Improve Transformer", SwiGLU.
    """
    gate_TF, up_TF = gate_up_TG.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate_TF) * up_TF
