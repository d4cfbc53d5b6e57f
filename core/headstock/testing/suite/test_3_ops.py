"""Every implementation that the backend offers computes what the op's reference computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headstock.ops import load_all_ops
from headstock.ops.base import Implementation
from headstock.ops.cases.base import dtype_name
from headstock.ops.cases.table import cases_of
from headstock.testing.checks import Verdict, judge
from headstock.testing.target import Target

OPS = sorted(load_all_ops().items())
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_SHOWN = 8
"""Wrong cases that a failing test lists."""
Judge = Callable[[list[Implementation], torch.dtype], list[Verdict]]


@pytest.fixture(params=[op for _, op in OPS], ids=[name for name, _ in OPS])
def claimed(
    request: pytest.FixtureRequest, target: Target, record_property: Callable[[str, object], None]
) -> list[Implementation]:
    """Return the op's offered implementations; skip where there are none."""
    op = request.param
    record_property("op", op.name)
    offered = target.claims(op)
    if not offered:
        pytest.skip("not claimed")
    if cases_of(op) is None:
        pytest.skip("the op has no cases")
    record_property("providers", sorted({i.provider for i in offered}))
    return offered


@pytest.fixture(scope="module")
def judged(target: Target) -> Judge:
    """Return what runs an op's cases on its implementations, once for all tests that ask."""
    known: dict[tuple[str, torch.dtype], list[Verdict]] = {}

    def find(claimed: list[Implementation], dtype: torch.dtype) -> list[Verdict]:
        op = load_all_ops()[claimed[0].op]
        if (op.name, dtype) not in known:
            benches = [target.benches(dtype, each.provider) for each in claimed]
            pairs = zip(claimed, benches, strict=True)
            known[op.name, dtype] = [judge(op, each, tried) for each, tried in pairs]
        return known[op.name, dtype]

    return find


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_it_equals_its_reference(
    judged: Judge,
    claimed: list[Implementation],
    dtype: torch.dtype,
    record_property: Callable[[str, object], None],
) -> None:
    verdicts = judged(claimed, dtype)
    findings = [finding for verdict in verdicts for finding in verdict.findings]
    num_checked = sum(verdict.num_checked for verdict in verdicts)
    record_property("dtype", dtype_name(dtype))
    record_property("num_cases", num_checked)
    record_property("kinds", sorted(frozenset[str]().union(*(v.kinds for v in verdicts))))
    record_property("findings", [str(finding) for finding in findings])
    if not num_checked:
        refusals = {reason: None for verdict in verdicts for reason in verdict.refusals}
        pytest.skip("; ".join(refusals) or f"no cases in {dtype_name(dtype)}")
    if findings:
        shown = "\n".join(str(finding) for finding in findings[:MOST_SHOWN])
        rest = len(findings) - MOST_SHOWN
        tail = f"\nand {rest} more" if rest > 0 else ""
        pytest.fail(f"{len(findings)} of {num_checked} cases are wrong:\n{shown}{tail}", False)


def test_it_accepts_something_that_can_be_checked(
    target: Target, judged: Judge, claimed: list[Implementation]
) -> None:
    lacking = [_lacking(target, i) for i in claimed]
    if all(lacking):
        pytest.skip("; ".join(map(str, lacking)))
    every = zip(*(judged(claimed, dtype) for dtype in DTYPES), strict=True)
    for implementation, reason, verdicts in zip(claimed, lacking, every, strict=True):
        refusals = {reason: None for verdict in verdicts for reason in verdict.refusals}
        assert reason or any(verdict.num_checked for verdict in verdicts), (
            f"{implementation.provider} refuses every case: {'; '.join(refusals)}"
        )


def _lacking(target: Target, implementation: Implementation) -> str | None:
    missing = implementation.requires.capabilities - target.device.capabilities
    return f"device lacks {', '.join(sorted(missing))}" if missing else None
