"""What references that read pages of tokens have in common: rows taken together, and their tokens.

Shapes: R rows, P pages, Q queries of a row, K tokens that are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from headstock.ops.attention import StepBatch

NONE_CHOSEN = -1
"""Stands where a query has fewer tokens, blocks or entries to see than may be chosen."""
SCORES_AT_ONCE = 1 << 24
"""Scores that are held at a time where PyTorch's fused attention cannot be used."""
TOKENS_AT_ONCE = 16
"""Tokens attended at a time where the host does not know the rows."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of equally many queries.

    Attributes:
        tokens: Their queries, one row after another.
        lengths_R: Their kv lengths.
        page_table_RP: Their pages.
        max_kv: Upper bound of the lengths.
    """

    tokens: slice
    lengths_R: Tensor
    page_table_RP: Tensor
    max_kv: int


def pieces_of(batch: StepBatch) -> Iterator[Piece]:
    """Yield rows to attend at once.

    Steps of one query a row need nothing of the host, and other steps without host rows are taken
    token by token: both can be captured.
    """
    if batch.max_query == 1:
        tokens = slice(0, batch.num_rows)
        yield Piece(tokens, batch.kv_lengths_R, batch.page_table_RP, batch.max_kv)
    elif batch.host_rows:
        for rows, tokens, max_kv in _same_query_rows(batch.host_rows):
            yield Piece(tokens, batch.kv_lengths_R[rows], batch.page_table_RP[rows], max_kv)
    else:
        for begin in range(0, batch.num_tokens, TOKENS_AT_ONCE):
            tokens = slice(begin, min(begin + TOKENS_AT_ONCE, batch.num_tokens))
            table_TP = batch.page_table_RP.index_select(0, batch.row_of_token_T[tokens])
            yield Piece(tokens, batch.positions_T[tokens] + 1, table_TP, batch.max_kv)


def slots_of(piece: Piece, page_size: int) -> Tensor:
    """Return where the rows' tokens lie, in tokens of the buffer, whole pages of them. [R, K]

    Past a row's length stands its first token again, since what lies there may be anything, and
    masking does not help: 0 * nan is nan.
    """
    device = piece.lengths_R.device
    pages_RP = piece.page_table_RP[:, : -(-piece.max_kv // page_size)].long()
    offsets = torch.arange(page_size, device=device)
    slots_RK = (pages_RP.unsqueeze(2) * page_size + offsets).flatten(1)
    tokens_K = torch.arange(slots_RK.shape[1], device=device)
    return torch.where(tokens_K < piece.lengths_R.unsqueeze(1), slots_RK, slots_RK[:, :1])


def causal(lengths_R: Tensor, num_queries: int, num_tokens: int) -> Tensor:
    """Return which of a row's tokens each of its queries, the last ones, sees. [R, Q, K]"""
    tokens_K = torch.arange(num_tokens, device=lengths_R.device)
    offsets_Q = torch.arange(num_queries, device=lengths_R.device) - num_queries
    return tokens_K <= (lengths_R[:, None] + offsets_Q)[:, :, None]


def _same_query_rows(host_rows: Sequence[tuple[int, int]]) -> Iterator[tuple[slice, slice, int]]:
    """Yield stretches of rows: those of one query together, others alone.

    Yields:
        The rows, their tokens, and the upper bound of their kv lengths.
    """
    row, token = 0, 0
    while row < len(host_rows):
        num_queries, max_kv = host_rows[row]
        end = row + 1
        while num_queries == 1 and end < len(host_rows) and host_rows[end][0] == 1:
            max_kv = max(max_kv, host_rows[end][1])
            end += 1
        num_tokens = (end - row) * num_queries
        yield slice(row, end), slice(token, token + num_tokens), max_kv
        row, token = end, token + num_tokens
