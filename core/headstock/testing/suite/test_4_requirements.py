"""What implementations require means something, and what they refuse is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from headstock.errors import UnsupportedError
from headstock.ops import load_all_ops
from headstock.ops.base import Implementation, Op, Resolver, Spec
from headstock.testing.target import Target

OPS = sorted(load_all_ops().items())


@pytest.fixture(params=[op for _, op in OPS], ids=[name for name, _ in OPS])
def op(request: pytest.FixtureRequest) -> Op[..., Any]:
    return request.param


@pytest.fixture
def claimed(target: Target, op: Op[..., Any]) -> list[Implementation]:
    """Return the op's offered implementations; skip where there are none."""
    offered = target.claims(op)
    if not offered:
        pytest.skip("not claimed")
    return offered


def test_every_required_dtype_exists(claimed: list[Implementation]) -> None:
    for implementation in claimed:
        for name in implementation.requires.dtypes:
            is_dtype = isinstance(getattr(torch, name, None), torch.dtype)
            assert is_dtype, f"{implementation.provider} requires dtype {name!r}, which is none"


def test_every_required_size_is_one_that_the_op_is_resolved_with(
    target: Target, op: Op[..., Any], claimed: list[Implementation]
) -> None:
    specs = _case_specs(target, op)
    if not specs:
        pytest.skip("the op has no cases")
    known = {name for spec in specs for name in spec.sizes}
    for implementation in claimed:
        unknown = set(implementation.requires.sizes) - known
        assert not unknown, (
            f"{implementation.provider} requires {sorted(unknown)}, which are never asked;"
            f" the op's sizes are {sorted(known)}"
        )


def test_an_unknown_feature_is_refused(target: Target, claimed: list[Implementation]) -> None:
    for implementation in claimed:
        spec = Spec(dtype="float32", features=frozenset({"a_feature_of_tomorrow"}))
        assert implementation.requires.reason_against(spec, target.device.capabilities)


def test_a_forced_provider_refuses_what_its_requirements_exclude(
    target: Target, op: Op[..., Any], claimed: list[Implementation]
) -> None:
    specs = _case_specs(target, op)
    if not specs:
        pytest.skip("the op has no cases")
    for implementation in claimed:
        dtypes = implementation.requires.dtypes
        dtype = specs[0].dtype if specs[0].dtype in dtypes or not dtypes else min(dtypes)
        features = specs[0].features | {"a_feature_of_tomorrow"}
        excluded = replace(specs[0], dtype=dtype, features=features)
        resolver = Resolver(target.registry, target.device, {op.name: implementation.provider})
        with pytest.raises(UnsupportedError, match="a_feature_of_tomorrow"):
            resolver.resolve(op, excluded)


def _case_specs(target: Target, op: Op[..., Any]) -> list[Spec]:
    if op.cases is None:
        return []
    return [case.spec for case in op.cases(target.benches(torch.float32)[0])]
