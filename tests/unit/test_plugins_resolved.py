"""The resolved plan and its fingerprint."""

from __future__ import annotations

import msgspec
import pytest

from headstock.errors import PluginError
from headstock.ops.base import Spec
from headstock.plugins.resolved import ResolvedOp, ResolvedPlan, check_equal, describe_spec

PLAN = ResolvedPlan(
    headstock="0.1.0",
    backend="toy",
    dist="headstock-toy",
    version="1.0",
    hook_api=(1, 0),
    ops=[ResolvedOp("rms_norm", "float32", "toy"), ResolvedOp("sample", "float32", "reference")],
)


def changed(**fields: object) -> ResolvedPlan:
    return msgspec.structs.replace(PLAN, **fields)


def test_a_spec_is_described_whatever_the_order_it_was_written_in() -> None:
    one = Spec(dtype="float32", sizes={"a": 1, "b": 2}, features=frozenset({"x", "y"}))
    other = Spec(dtype="float32", sizes={"b": 2, "a": 1}, features=frozenset({"y", "x"}))
    assert describe_spec(one) == describe_spec(other) == "float32 a=1 b=2 +x +y"


def test_the_plan_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(PLAN), type=ResolvedPlan) == PLAN


def test_the_summary_counts_providers() -> None:
    assert PLAN.summary == "1 reference, 1 toy"


def test_equal_plans_pass() -> None:
    check_equal(PLAN, changed(), rank=1)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (changed(version="1.1"), "version is 1.1 there and 1.0 on rank 0"),
        (changed(ops=PLAN.ops[:1]), "sample .* no provider there and by reference on rank 0"),
        (
            changed(ops=[ResolvedOp("rms_norm", "float32", "triton"), PLAN.ops[1]]),
            "rms_norm .* triton there and by toy on rank 0",
        ),
    ],
)
def test_a_difference_is_refused_by_name(other: ResolvedPlan, says: str) -> None:
    with pytest.raises(PluginError, match=says):
        check_equal(other, PLAN, rank=1)
