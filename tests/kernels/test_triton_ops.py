"""The Triton kernels against the references: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import os
import sys

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"

triton = pytest.importorskip("triton")

from headstock.ops import load_all_ops  # noqa: E402
from headstock.ops.base import OpRegistry, Resolver  # noqa: E402
from headstock.ops.cases.base import Bench, as_tensors  # noqa: E402

if not HAS_GPU:
    if not triton.knobs.runtime.interpret:
        pytest.skip("triton was imported before its interpreter could be chosen", True)
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
        pytest.skip(f"the interpreter of triton {triton.__version__} is broken", True)

from headstock_triton.register import PROVIDER, register_ops  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16] if HAS_GPU else [torch.float32]


class Here:
    """The device under test."""

    torch_device = torch.device("cuda" if HAS_GPU else "cpu")
    capabilities = frozenset[str]()
    num_threads = 1


def resolver() -> Resolver:
    registry = OpRegistry()
    register_ops(registry, Here())
    return Resolver(registry, Here())


def all_cases():
    for name, op in load_all_ops().items():
        registry = OpRegistry()
        register_ops(registry, Here())
        offered = [i for i in registry.offered(op) if i.provider == PROVIDER]
        if not offered or op.cases is None:
            continue
        for dtype in DTYPES:
            bench = Bench(resolver=resolver(), dtype=dtype, page_sizes=(16, 64))
            for case in op.cases(bench):
                for implementation in offered:
                    if implementation.requires.reason_against(case.spec, frozenset()) is None:
                        label = f"{name}-{str(dtype)[6:]}-{case.label}"
                        yield pytest.param(op, implementation, case, id=label)


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
