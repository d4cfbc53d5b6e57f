"""Rules of docs/writing-a-backend.md that equal numbers do not show: no waits, no neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from headstock.ops import load_all_ops
from headstock.ops.base import Implementation, Op
from headstock.ops.cases.base import Case
from headstock.ops.cases.neighbours import neighbour_cases
from headstock.ops.cases.table import cases_of
from headstock.testing.checks import describe
from headstock.testing.target import Target
from headstock.testing.waiting import watched, watched_builder

OPS = sorted(load_all_ops().items())
MOST_CASES = 12
"""Cases of an implementation that are watched: waits hang on the code, not on numbers."""

Claimed = list[Implementation]


@pytest.fixture(params=[op for _, op in OPS], ids=[name for name, _ in OPS])
def op(request: pytest.FixtureRequest) -> Op[..., Any]:
    return request.param


@pytest.fixture
def claimed(target: Target, op: Op[..., Any]) -> Claimed:
    """Return the op's offered implementations; skip where there are none."""
    offered = target.claims(op)
    if not offered:
        pytest.skip("not claimed")
    return offered


def test_it_never_waits_for_the_device(target: Target, op: Op[..., Any], claimed: Claimed) -> None:
    for implementation in claimed:
        run = implementation.run
        watching = watched_builder(run) if op.is_built else watched(run)
        for case in _some(_accepted(target, op, implementation)):
            case.outcome(watching)


def test_a_row_does_not_depend_on_its_neighbours(
    target: Target, op: Op[..., Any], claimed: Claimed
) -> None:
    """In float32 to the bit: one bit can turn a token."""
    num_checked = 0
    for implementation in claimed:
        for label, first, second in _pairs(target, op, implementation):
            num_checked += 1
            same = all(
                torch.equal(one.nan_to_num(), other.nan_to_num())
                for one, other in zip(first, second, strict=True)
            )
            assert same, (
                f"{op.name} by {implementation.provider}, {label}: the first row's result changes"
                " with what its neighbours hold"
            )
    if not num_checked:
        pytest.skip("no case has neighbours")


def _accepted(target: Target, op: Op[..., Any], implementation: Implementation) -> Iterator[Case]:
    """Yield cases that an implementation takes, in the first dtype that it takes any in."""
    cases_on = cases_of(op)
    if cases_on is None:
        return
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for bench in target.benches(dtype, implementation.provider):
            cases = [case for case in cases_on(bench) if _takes(target, implementation, case)]
            if cases:
                yield from cases
                return


def _some(cases: Iterator[Case]) -> list[Case]:
    """Return the first case of every set of features and kinds, and others up to the most."""
    everything = list(cases)
    places = {(c.spec.features, c.spec.kinds): i for i, c in reversed([*enumerate(everything)])}
    firsts = set(places.values())
    rest = (i for i in range(len(everything)) if i not in firsts)
    others = itertools.islice(rest, max(0, MOST_CASES - len(firsts)))
    return [everything[i] for i in sorted({*firsts, *others})]


def _pairs(
    target: Target, op: Op[..., Any], implementation: Implementation
) -> Iterator[tuple[str, tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Yield what an implementation makes of a first row beside neighbours, and beside others."""
    for bench in target.benches(torch.float32, implementation.provider):
        for one, other, rows in neighbour_cases(op, bench):
            if _takes(target, implementation, one):
                results = (one.outcome(implementation.run), other.outcome(implementation.run))
                first, second = (tuple(r[:rows] for r in result) for result in results)
                yield describe(one), first, second


def _takes(target: Target, implementation: Implementation, case: Case) -> bool:
    capabilities = target.device.capabilities
    return implementation.requires.reason_against(case.spec, capabilities) is None
