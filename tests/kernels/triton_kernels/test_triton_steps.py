"""The step ops' kernels against the references."""

from __future__ import annotations

import pytest
import torch
from triton_here import Here

from headstock.ops import steps as ops
from headstock_triton.steps import Steps
from headstock_triton.target import Target

WHERE = Here.torch_device
NUM_SLOTS, NUM_PAGES, PAGE = 7, 40, 4
KERNELS = Steps(Target.of(Here()))


def integers(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device=WHERE)


def table():
    torch.manual_seed(0)
    pages = torch.randint(1, 99, (NUM_SLOTS, NUM_PAGES), dtype=torch.int32).to(WHERE)
    lengths = integers(9, 0, 30, 5, 3, 8, 0)
    done = integers(0, 0, 1, 0, 0, 0, 1)
    last_ids = integers(11, 12, 13, 14, 15, 16, 0)
    return lengths, done, last_ids, pages


def place(run):
    slots = integers(3, 0, 2, 1, 6)
    starts = integers(0, 1, 2, 3, 10, 11)
    host = integers(-1, -1, -1, 5, 6, 7, 8, 9, 10, 11, 0, 0, 0)
    num_tokens = host.shape[0]
    wide = torch.full((5, NUM_PAGES + 2), -7, dtype=torch.int32, device=WHERE)
    out = [
        torch.full((num_tokens,), -7, dtype=dtype, device=WHERE)
        for dtype in (torch.int64, torch.int64, torch.int32, torch.int64)
    ]
    kv_lengths = integers(*[-7] * 5)
    run(slots, starts, host, *table(), *out, kv_lengths, wide[:, :20], page_size=PAGE)
    return [*out, kv_lengths, wide]


def test_place_step():
    for ours, right in zip(place(KERNELS.place_step), place(ops.place_step.reference), strict=True):
        assert torch.equal(ours, right)


def test_last_of_rows():
    x = torch.randn(9, 33, device=WHERE)
    starts = integers(0, 1, 5, 9)
    assert torch.equal(KERNELS.last_of_rows(x, starts), ops.last_of_rows(x, starts))


def test_mark_faults():
    logits = torch.randn(4, 50, device=WHERE)
    logits[1, 3], logits[2, 7] = torch.nan, torch.inf
    drawn = integers(0, 3, 7, 9, dtype=torch.int64)
    assert KERNELS.mark_faults(drawn, logits).tolist() == [0, -1, -1, 9]


def test_advance_lengths():
    slots, reached = integers(3, 0, 2, 6), integers(6, 10, 30, 1)
    ours, done, _, _ = table()
    right = ours.clone()
    KERNELS.advance_lengths(slots, reached, done, ours)
    ops.advance_lengths(slots, reached, done, right)
    assert torch.equal(ours, right)


def settle(run, cursor, num_null_rows):
    drawn = integers(4, 5, -1, 8, *[9] * num_null_rows, dtype=torch.int64)
    slots = integers(3, 0, 4, 2, *[6] * num_null_rows)
    _, done, last_ids, _ = table()
    max_outputs = integers(9, 9, 9, 3, 9, 9, 0)
    num_outputs = integers(1, 1, 1, 2, 1, 1, 0, dtype=torch.int64)
    stops = torch.full((NUM_SLOTS, 3), -1, dtype=torch.int32, device=WHERE)
    stops[0, 1] = 5
    outbox = torch.full((3, 150, 2), -9, dtype=torch.int32, device=WHERE)
    at = integers(cursor, dtype=torch.int64)
    view = outbox[:, : drawn.shape[0]]
    run(drawn, slots, max_outputs, stops, last_ids, num_outputs, done, view, at)
    return last_ids, num_outputs, done, outbox, at


@pytest.mark.parametrize(("cursor", "num_null_rows"), [(0, 0), (5, 3), (7, 140)])
def test_settle_step(cursor, num_null_rows):
    ours = settle(KERNELS.settle_step, cursor, num_null_rows)
    right = settle(ops.settle_step.reference, cursor, num_null_rows)
    for mine, wanted in zip(ours, right, strict=True):
        assert torch.equal(mine, wanted)
