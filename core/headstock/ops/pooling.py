"""Hidden states of rows to one vector a row.

Shapes: T tokens, R rows, P rows pooled, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op

SMALLEST = 1e-12
"""Vectors that are shorter are divided by this instead of by their length."""


@op()
def pool_rows(
    hidden_TD: Tensor,
    query_starts_R1: Tensor,
    rows_P: Tensor,
    *,
    kind: str,
    is_normalized: bool,
) -> Tensor:
    """Return one vector for each of the rows that ``rows_P`` names.

    Sums are taken in float32 whatever the input dtype.

    Args:
        hidden_TD: Hidden states of the step's tokens. With ``last`` they may be those of the rows'
            last tokens alone, one a row; where every row has one token both are the same. [T, D]
        query_starts_R1: Where each row's tokens begin. int32. [R + 1]
        rows_P: Indexes of rows. int64. [P]
        kind: ``last``, ``mean`` or ``cls``: of a row's last token, of all, of its first.
        is_normalized: Whether vectors are divided by their length.

    Returns:
        float32. [P, D]
    """
    starts_R1 = query_starts_R1.long()
    begins_P, ends_P = starts_R1[rows_P], starts_R1[rows_P + 1]
    if kind == "mean":
        tokens_T = torch.arange(hidden_TD.shape[0], device=hidden_TD.device)
        row_of_token_T = torch.searchsorted(starts_R1[1:], tokens_T, right=True)
        sums_RD = torch.zeros(starts_R1.shape[0], hidden_TD.shape[1], device=hidden_TD.device)
        sums_RD.index_add_(0, row_of_token_T, hidden_TD.to(torch.float32))
        vectors_PD = sums_RD[rows_P] / (ends_P - begins_P).unsqueeze(1)
    else:
        is_cut = hidden_TD.shape[0] == starts_R1.shape[0] - 1
        places_P = rows_P if is_cut else begins_P if kind == "cls" else ends_P - 1
        vectors_PD = hidden_TD[places_P].to(torch.float32)
    return _of_length_1(vectors_PD) if is_normalized else vectors_PD


@op()
def normalize_vectors(vectors_PD: Tensor) -> Tensor:
    """Divide each vector by its length.

    Args:
        vectors_PD: float32. [P, D]

    Returns:
        float32. [P, D]
    """
    return _of_length_1(vectors_PD)


def _of_length_1(vectors_PD: Tensor) -> Tensor:
    return vectors_PD / vectors_PD.norm(dim=1, keepdim=True).clamp(min=SMALLEST)
