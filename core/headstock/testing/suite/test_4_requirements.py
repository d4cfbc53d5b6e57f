"""What implementations require means something, and what they refuse is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import pytest
import torch

from headstock.errors import UnsupportedError
from headstock.ops import load_all_ops
from headstock.ops.base import Implementation, Op, Resolver, Spec
from headstock.ops.cases.table import cases_of
from headstock.testing.target import Target

OPS = sorted(load_all_ops().items())
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIKELY = 0.85
"""How alike letters are of which one is taken for the other misspelt."""


@pytest.fixture(scope="module", params=[op for _, op in OPS], ids=[name for name, _ in OPS])
def op(request: pytest.FixtureRequest) -> Op[..., Any]:
    return request.param


@pytest.fixture(scope="module")
def claimed(target: Target, op: Op[..., Any]) -> list[Implementation]:
    """Return the op's offered implementations; skip where there are none."""
    offered = target.claims(op)
    if not offered:
        pytest.skip("not claimed")
    return offered


@pytest.fixture(scope="module")
def specs(target: Target, op: Op[..., Any], claimed: list[Implementation]) -> list[Spec]:
    """Return what the op's cases are resolved for, in dtypes that are narrower, too."""
    assert claimed, "what is not claimed is skipped before its cases are made"
    cases = cases_of(op)
    if cases is None:
        return []
    benches = [bench for dtype in DTYPES for bench in target.benches(dtype)[:1]]
    return [case.spec for bench in benches for case in cases(bench)]


def test_every_required_dtype_exists(claimed: list[Implementation]) -> None:
    for implementation in claimed:
        for name in implementation.requires.dtypes:
            is_dtype = isinstance(getattr(torch, name, None), torch.dtype)
            assert is_dtype, f"{implementation.provider} requires dtype {name!r}, which is none"


def test_every_required_size_is_one_that_the_op_is_resolved_with(
    specs: list[Spec], claimed: list[Implementation]
) -> None:
    if not specs:
        pytest.skip("the op has no cases")
    known = {name for spec in specs for name in spec.sizes}
    for implementation in claimed:
        unknown = set(implementation.requires.sizes) - known
        assert not unknown, (
            f"{implementation.provider} requires {sorted(unknown)}, which are never asked;"
            f" the op's sizes are {sorted(known)}"
        )


def test_every_required_feature_is_one_that_the_op_knows(
    op: Op[..., Any], specs: list[Spec], claimed: list[Implementation]
) -> None:
    asked = {name for spec in specs for name in spec.features}
    known = asked | op.features
    for implementation in claimed:
        unknown = implementation.requires.features - known
        assert not unknown, (
            f"{implementation.provider} declares features {sorted(unknown)}, which are never"
            f" asked; the op's features are {sorted(known)}"
        )


def test_every_required_name_is_one_that_there_is(
    specs: list[Spec], claimed: list[Implementation]
) -> None:
    """Of layouts, dtypes of pages, architectures; formats of pages are their providers' own."""
    known = {name for spec in specs for name in spec.kinds}
    if not known or any(each.requires.page_formats for each in claimed):
        pytest.skip("none is asked, or formats of pages: refused where no provider has them")
    known |= {name for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
    for implementation in claimed:
        asked = implementation.requires
        unknown = asked.layouts.union(asked.page_dtypes, asked.architectures) - known
        assert not unknown, (
            f"{implementation.provider} requires {sorted(unknown)}, which are never asked;"
            f" those of the cases are {sorted(known)}"
        )


def test_every_required_capability_is_one_that_the_device_has(
    target: Target, claimed: list[Implementation]
) -> None:
    """One of another generation's device is skipped, by name; a misspelt one is an error."""
    has = target.device.capabilities
    lacking = {word for each in claimed for word in each.requires.capabilities - has}
    misspelt = [(word, meant) for word in lacking for meant in has if _is_likely(word, meant)]
    assert not misspelt, "; ".join(
        f"the device lacks {word!r}; did you mean {meant!r}?" for word, meant in sorted(misspelt)
    )
    if lacking:
        pytest.skip(f"the device lacks {', '.join(sorted(lacking))}: what needs it was not tried")


def test_an_unknown_feature_is_refused(target: Target, claimed: list[Implementation]) -> None:
    for implementation in claimed:
        spec = Spec(dtype="float32", features=frozenset({"a_feature_of_tomorrow"}))
        assert implementation.requires.reason_against(spec, target.device.capabilities)


def test_a_forced_provider_refuses_what_its_requirements_exclude(
    target: Target, op: Op[..., Any], specs: list[Spec], claimed: list[Implementation]
) -> None:
    if not specs:
        pytest.skip("the op has no cases")
    for implementation in claimed:
        taken = next((spec for spec in specs if _takes(implementation, spec)), specs[0])
        excluded = replace(taken, features=taken.features | {"a_feature_of_tomorrow"})
        if implementation.requires.capabilities - target.device.capabilities:
            continue  # refused for that; test_every_required_capability_… names it
        resolver = Resolver(target.registry, target.device, {op.name: implementation.provider})
        with pytest.raises(UnsupportedError, match="a_feature_of_tomorrow"):
            resolver.resolve(op, excluded)


def _takes(implementation: Implementation, spec: Spec) -> bool:
    requires = implementation.requires
    return requires.reason_against(spec, requires.capabilities) is None


def _is_likely(word: str, meant: str) -> bool:
    """Whether ``word`` is ``meant`` misspelt: the same numbers, and next to the same letters."""
    if re.findall(r"\d+", word) != re.findall(r"\d+", meant):
        return False  # another generation
    one, other = (re.sub(r"[^a-z]", "", text.lower()) for text in (word, meant))
    return SequenceMatcher(None, one, other).ratio() > LIKELY
