"""The step ops' kernels against the references, on the kit's cases and on large steps."""

from __future__ import annotations

import pytest
import torch
from triton_here import Here

from headstock.ops import drafts
from headstock.ops import steps as ops
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.base import Bench
from headstock.ops.cases.steps import NULL_SLOT, _copy, _inputs, _slots
from headstock.ops.cases.table import CASES
from headstock_triton.drafts import Drafts
from headstock_triton.steps import Steps
from headstock_triton.target import Target

WHERE = Here.torch_device
KERNELS = Steps(Target.of(Here()))
DRAFTS = Drafts(Target.of(Here()))
BENCH = Bench(resolver=Resolver(OpRegistry(), Here()), dtype=torch.float32)
NAMES = (
    "place_step",
    "last_of_rows",
    "keep_rows",
    "mark_faults",
    "advance_lengths",
    "settle_step",
)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_compute_what_the_references_do(name):
    op, run = getattr(ops, name), getattr(KERNELS, name)
    cases = list(CASES[op.name](BENCH))
    assert len(cases) >= 2
    for case in cases:
        for ours, right in zip(case.outcome(run), case.outcome(op.reference), strict=True):
            torch.testing.assert_close(ours, right, rtol=0, atol=0, equal_nan=True, msg=case.label)


@pytest.mark.parametrize(
    "op",
    [
        ops.accept_drafts,
        ops.spread_draws,
        drafts.append_outputs,
        drafts.draft_ngrams,
        drafts.enter_drafts,
    ],
    ids=lambda op: op.name,
)
def test_drafting_computes_what_the_references_do(op):
    cases = list(CASES[op.name](BENCH))
    assert len(cases) >= 2
    for case in cases:
        ours = case.outcome(getattr(DRAFTS, op.name))
        for got, right in zip(ours, case.outcome(op.reference), strict=True):
            torch.testing.assert_close(got, right, rtol=0, atol=0, msg=case.label)


@pytest.mark.parametrize(("num_null_rows", "num_draws"), [(0, 1), (3, 1), (140, 1), (140, 4)])
def test_more_rows_settle_than_a_block_holds(num_null_rows, num_draws):
    slots = [3, 0, 4, 2, *[NULL_SLOT] * num_null_rows]
    drawn = torch.arange(len(slots) * num_draws).view(-1, num_draws).to(WHERE) % 6 - 1
    inputs = _inputs(BENCH, slots, [num_draws] * len(slots), [num_draws] * len(slots))
    accepted = inputs.num_draws_R.clone()
    tables = []
    for run in (KERNELS.settle_step, ops.settle_step.reference):
        outbox = torch.full((3, 150, 6), -9, dtype=torch.int32, device=WHERE)
        view = outbox[:, : len(slots)]
        table, _ = run(drawn, accepted, _copy(_slots(BENCH)), inputs, view)
        tables.append(
            (table.last_ids_S, table.num_outputs_S, table.done_S, table.lengths_S, outbox)
        )
    for ours, right in zip(*tables, strict=True):
        assert torch.equal(ours, right)
