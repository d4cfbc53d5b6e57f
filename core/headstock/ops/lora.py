"""Low-rank additions to matrix products, another for each token.

Shapes: T tokens, I input and O output features, N places of adapters, P parts of a product that
have additions of their own (queries, keys, values), R the largest rank, K = P · R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op

RANK_UNIT = 16
"""R is a multiple of this: adapters of other ranks are filled up with zeros."""


@op()
def add_lora(
    out_TO: Tensor,
    x_TI: Tensor,
    down_NKI: Tensor,
    up_NOR: Tensor,
    adapters_T: Tensor,
    *,
    starts: tuple[int, ...],
) -> Tensor:
    """Add to each token's product what its adapter says: up · (down · x), part by part.

    Sums are taken in float32. What tokens without an adapter have is not looked at: it may be
    padding. An implementation may write into ``out_TO`` and return that.

    Args:
        out_TO: The product. [T, O]
        x_TI: What was multiplied, in the same dtype. [T, I]
        down_NKI: Of each place and part the matrix to R features. [N, K, I]
        up_NOR: Of each place the matrix from them to the part's features, scaled. [N, O, R]
        adapters_T: Place of each token's adapter, 1 to N; 0: none. int32. [T]
        starts: Output feature that each part begins at, ascending, the first 0.

    Returns:
        [T, O]

    Source:
        Hu et al. 2021, "LoRA", section 4.1.
    """
    ends, rank = (*starts[1:], out_TO.shape[1]), up_NOR.shape[2]
    for place, (down_KI, up_OR) in enumerate(zip(down_NKI, up_NOR, strict=True), 1):
        inner_TK = x_TI.float() @ down_KI.float().T
        added = [
            inner_TK[:, part * rank : (part + 1) * rank] @ up_OR[begin:end].float().T
            for part, (begin, end) in enumerate(zip(starts, ends, strict=True))
        ]
        sum_TO = (out_TO.float() + torch.cat(added, 1)).to(out_TO.dtype)
        out_TO = torch.where((adapters_T == place).unsqueeze(1), sum_TO, out_TO)
    return out_TO
