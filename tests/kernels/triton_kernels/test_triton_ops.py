"""The Triton kernels against the references, on the cases of the ops."""

from __future__ import annotations

import pytest
import torch
from triton_here import DTYPES, HAS_GPU, Here

from headstock.ops import load_all_ops
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.base import Bench, as_tensors
from headstock.ops.cases.table import CASES
from headstock_triton.register import PROVIDER, register_ops


def resolver() -> Resolver:
    registry = OpRegistry()
    register_ops(registry, Here())
    return Resolver(registry, Here())


def all_cases():
    registry = OpRegistry()
    register_ops(registry, Here())
    for name, op in load_all_ops().items():
        offered = [i for i in registry.offered(op) if i.provider == PROVIDER]
        if not offered or name not in CASES:
            continue
        for dtype in DTYPES:
            bench = Bench(resolver=resolver(), dtype=dtype, page_sizes=(16, 64))
            cases = [case for case in CASES[name](bench) if not is_too_large(case.label)]
            left = set() if HAS_GPU else many(cases)
            for number, case in enumerate(cases):
                is_left = number in left or is_slow(name, case.label)
                for implementation in offered:
                    if implementation.requires.reason_against(case.spec, frozenset()) is None:
                        label = f"{name}-{str(dtype)[6:]}-{case.label}"
                        marks = [pytest.mark.slow] if is_left else []
                        yield pytest.param(op, implementation, case, id=label, marks=marks)


HUGE = ("8200", "33000", "14336")
LARGE = ("1030", "4608", "an input at a time", "a long prompt", "a long cache")
"""What labels of cases say whose sizes only a device computes in no time."""
MANY = 12
"""Cases of an op from which on neighbours differ little; a device runs all of them."""


def is_too_large(label: str) -> bool:
    """Whether to leave a case to a device: the interpreter takes minutes for it."""
    return not HAS_GPU and any(size in label for size in HUGE)


def is_slow(name: str, label: str) -> bool:
    """Whether to leave a case to the long run: the interpreter takes seconds for it."""
    if HAS_GPU:
        return False
    if any(size in label for size in LARGE):
        return True
    if name in ("attention", "latent_attention"):
        slow = ("pages of 64", "long", "sizes of", "a prompt of some length")
        return any(what in label for what in slow)
    if name == "compressed_attention":
        fast = ("decode at page edges, pages of 16", "3 heads", "5 chosen")
        return not any(what in label for what in fast)
    if name == "gate_by_softplus":
        return "900 tokens" in label
    if name in ("index_tokens", "index_blocks"):
        fast = (
            "one token",
            "loose bounds",
            "one prefill, pages of 16",
            "middle of a page, pages of 16",
        )
        return not any(what in label for what in fast)
    if "by channel" in label:
        return any(what in label for what in ("decay", "sizes of", "heads", "verification"))
    if name == "short_convolution":
        return "features" in label
    if name == "mamba2":
        slow = ("sizes of", "decay", "heads in", "convolution over", "whole chunks")
        return any(what in label for what in slow)
    return name == "draw_tokens" and ("of 49152" in label or "17 rows" in label)


def many(cases):
    """Return which cases to leave to the long run: three of four, but the first of a kind."""
    if len(cases) < MANY:
        return set()
    kinds = [
        (case.spec.layout, case.spec.page_dtype, frozenset(case.spec.features)) for case in cases
    ]
    return {n for n in range(len(cases)) if n % 4 and kinds[n] in kinds[:n]}


@pytest.mark.parametrize(("op", "implementation", "case"), list(all_cases()))
def test_kernel_equals_reference(op, implementation, case):
    got = case.outcome(implementation.run)
    if case.check is not None:
        assert case.check(got) is None
        return
    wanted = case.outcome(op.reference) if case.expected is None else as_tensors(case.expected())
    rtol, atol = op.tolerance.of(case.spec.dtype)
    for ours, right in zip(got, wanted, strict=True):
        ours, right = ours[: case.num_real], right[: case.num_real]
        if ours.is_floating_point():
            torch.testing.assert_close(ours.double(), right.double(), rtol=rtol, atol=atol)
        else:
            assert torch.equal(ours, right)
