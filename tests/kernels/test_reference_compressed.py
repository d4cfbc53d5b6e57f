"""Entries of tokens: their references against float64, and what their pages hold."""

from __future__ import annotations

import pytest
import torch

from headstock.ops.base import REFERENCE, Implementation, Requires
from headstock.ops.cases.base import Bench, dtype_name
from headstock.ops.compressed import (
    choose_entries,
    compress_tokens,
    entries_a_page,
    rotate_last,
)
from headstock.testing.checks import judge

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = (choose_entries, compress_tokens, rotate_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_references_equal_float64(op, dtype: torch.dtype, references) -> None:
    run = Implementation(
        op=op.name, provider=REFERENCE, run=op.reference, requires=Requires(features=op.features)
    )
    verdict = judge(op, run, [Bench(resolver=references, dtype=dtype, page_sizes=(16, 1, 5))])
    assert verdict.num_checked >= 8
    assert not verdict.findings, "\n".join(map(str, verdict.findings))


@pytest.mark.parametrize(("page_size", "rate", "count"), [(16, 4, 4), (16, 16, 1), (16, 128, 1)])
def test_a_page_has_room_for_the_entries_that_end_in_it(
    page_size: int, rate: int, count: int
) -> None:
    assert entries_a_page(page_size, rate) == count


def test_entries_of_rows_that_are_done_go_to_the_null_page(references) -> None:
    """Their tables still name pages that others may read by now."""
    from headstock.ops.cases.batches import make_step

    step = make_step([(1, 8)], 4, torch.device("cpu"))
    step.batch.write_slots_T.zero_()
    waiting, entries = torch.zeros(step.num_pages, 4, 16), torch.zeros(step.num_pages, 1, 8)
    table_LE = torch.ones(16, 4)
    args = (torch.ones(1, 16), torch.zeros(4, 8), torch.ones(8), table_LE)
    compress_tokens(*args, waiting, step.batch, entries, step.batch, eps=1e-6)
    assert waiting[1:].count_nonzero() == 0
    assert entries[1:].count_nonzero() == 0
