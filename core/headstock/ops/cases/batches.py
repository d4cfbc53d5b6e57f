"""Steps made by hand, from lists of (query tokens, kv tokens): for tests and the kit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.cases.base import Draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A batch with what one needs to fill and to check its pages.

    Attributes:
        batch: What providers get.
        num_pages: Pages the cache must have, the null page included.
        num_real_rows: Rows that are not padding.
        num_real_tokens: Tokens that are not padding.
        slots: Of each real row: the slots of all its tokens, first to last. int64. [kv length]
    """

    batch: StepBatch
    num_pages: int
    num_real_rows: int
    num_real_tokens: int
    slots: list[Tensor]


def make_step(
    rows: Sequence[tuple[int, int]],
    page_size: int,
    device: torch.device,
    *,
    num_padding_rows: int = 0,
    shared: Sequence[tuple[int, int, int]] = (),
    bound_slack: int = 0,
    window: int | None = None,
    seed: int = 0,
) -> Step:
    """Build a step whose rows have their pages scattered over the cache.

    Args:
        rows: (query tokens, kv tokens, those included) of each row.
        page_size: Tokens a page holds.
        device: Where the tensors go.
        num_padding_rows: Rows of one token on the null page, after the real ones.
        shared: (row_begin, row_end, kv_end): these rows have the same pages up to token
            ``kv_end``, which the page size divides; each becomes a node of the tree.
        bound_slack: How far the host's upper bounds of kv lengths are off.
        window: Tokens a query sees, itself included. Pages that no query of a row sees any of are
            taken from its table, where the null page stands instead. None: all are kept.
        seed: Of the order of the pages.
    """
    padded = [*rows, *[(1, 1)] * num_padding_rows]
    tables, num_pages = _page_tables(rows, page_size, shared, seed)
    table_RP = _table_of(tables, len(padded))
    slots = [_slots(table_RP[row], length, page_size) for row, (_, length) in enumerate(padded)]
    if window is not None:
        _give_back(table_RP, rows, page_size, window)
    queries_R = torch.tensor([num for num, _ in padded])
    starts_R1 = torch.nn.functional.pad(queries_R.cumsum(0), (1, 0)).int()
    write = [row_slots[-num:] for row_slots, (num, _) in zip(slots, padded, strict=True)]
    nodes = [(begin, end, 0, kv_end) for begin, end, kv_end in shared]
    num_real_tokens = sum(num_queries for num_queries, _ in rows)
    bounds = [(num_queries, length + bound_slack) for num_queries, length in padded]
    batch = StepBatch(
        num_tokens=int(starts_R1[-1]),
        num_rows=len(padded),
        max_query=max(num_queries for num_queries, _ in padded),
        max_kv=max(length for _, length in bounds),
        positions_T=torch.cat([torch.arange(end - num, end) for num, end in padded]).to(device),
        query_starts_R1=starts_R1.to(device),
        kv_lengths_R=torch.tensor([length for _, length in padded], dtype=torch.int32).to(device),
        page_table_RP=table_RP.to(device),
        write_slots_T=torch.cat(write).to(device),
        row_of_token_T=torch.arange(len(padded)).repeat_interleave(queries_R).int().to(device),
        counts=torch.tensor([len(rows), num_real_tokens, len(nodes)]).int().to(device),
        tree_N4=torch.tensor(nodes, dtype=torch.int32).reshape(-1, 4).to(device),
        host_rows=bounds,
    )
    return Step(
        batch=batch,
        num_pages=num_pages,
        num_real_rows=len(rows),
        num_real_tokens=num_real_tokens,
        slots=[row_slots.to(device) for row_slots in slots[: len(rows)]],
    )


def _table_of(tables: Sequence[Sequence[int]], num_rows: int) -> torch.Tensor:
    """Return the rows' pages, with null pages behind them and in padding rows. [R, P]"""
    width = max(len(table) for table in tables) + 1
    table_RP = torch.zeros(num_rows, width, dtype=torch.int32)
    for row, table in enumerate(tables):
        table_RP[row, : len(table)] = torch.tensor(table)
    return table_RP


def _give_back(
    table_RP: Tensor, rows: Sequence[tuple[int, int]], page_size: int, window: int
) -> None:
    """Put the null page where no query of a row sees any token of the page."""
    for row, (num_queries, length) in enumerate(rows):
        # The row's first query stands at length - num_queries and sees window - 1 tokens before.
        first_seen = length - num_queries - window + 1
        table_RP[row, : max(0, first_seen) // page_size] = 0


def _page_tables(
    rows: Sequence[tuple[int, int]],
    page_size: int,
    shared: Sequence[tuple[int, int, int]],
    seed: int,
) -> tuple[list[list[int]], int]:
    """Return each row's pages, drawn in random order, and how many pages there are."""
    sizes = [-(-length // page_size) for _, length in rows]
    num_pages = 1 + sum(sizes)
    order = torch.randperm(num_pages - 1, generator=Draw(torch.device("cpu"), seed).generator)
    free = iter((order + 1).tolist())
    tables = [[next(free) for _ in range(size)] for size in sizes]
    for begin, end, kv_end in shared:
        assert kv_end % page_size == 0, f"{kv_end} tokens are not whole pages of {page_size}"
        for row in range(begin + 1, end):
            tables[row][: kv_end // page_size] = tables[begin][: kv_end // page_size]
    return tables, num_pages


def _slots(table_P: Tensor, length: int, page_size: int) -> Tensor:
    tokens = torch.arange(length)
    return table_P[tokens // page_size].long() * page_size + tokens % page_size
