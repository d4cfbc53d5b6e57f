"""Reads a matrix back from whoever multiplies by it, however it is packed.

A product with a unit vector is a column of the matrix. It is as exact as the product: of what is
kept in few bits it is what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headstock.graph.split import Span

COLUMNS_AT_ONCE = 64
"""Rows of the step that a matrix is read with."""
LENGTHS = {torch.float16: 2.0**5}
"""How long the vectors are by dtype: so long that a bias hardly counts, and nothing overflows."""
LENGTH = 2.0**40


def rows_of_product(
    multiply: Callable[[Any], Tensor],
    in_features: int,
    rows: Span,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return rows of a matrix W from products x·Wᵀ, perhaps with a bias. float32 [rows, I]

    Args:
        multiply: The product.
        in_features: I.
        rows: Which.
        dtype: Of x.
        device: Where.
    """
    length = LENGTHS.get(dtype, LENGTH)
    values_RI = torch.empty((rows.size, in_features))
    x_MI = torch.zeros((COLUMNS_AT_ONCE, in_features), dtype=dtype, device=device)
    bias_R = _of_zeros(multiply, x_MI, rows)
    for begin in range(0, in_features, COLUMNS_AT_ONCE):
        count = min(COLUMNS_AT_ONCE, in_features - begin)
        x_MI.zero_()
        x_MI[:count, begin : begin + count].fill_diagonal_(length)
        columns_MR = multiply(x_MI)[:count, rows.begin : rows.end].to("cpu", torch.float32)
        values_RI[:, begin : begin + count] = (columns_MR - bias_R).T / length
    return values_RI


def bias_of_product(
    multiply: Callable[[Any], Tensor],
    in_features: int,
    rows: Span,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return what is added to the product, of some rows; see :func:`rows_of_product`. [rows]"""
    return _of_zeros(multiply, torch.zeros((1, in_features), dtype=dtype, device=device), rows)


def _of_zeros(multiply: Callable[[Any], Tensor], x_MI: Tensor, rows: Span) -> Tensor:
    return multiply(x_MI)[0, rows.begin : rows.end].to("cpu", torch.float32)
