"""Every op that native kernels compute, by the kit's cases, and what is left to the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headstock.ops import load_all_ops
from headstock.ops.attention import BIDIRECTIONAL, BOTH_SIDES, attention
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.attention import plain_spec
from headstock.ops.cases.base import Bench
from headstock.ops.offers import offers_of
from headstock.ops.sampling import token_logprobs
from headstock.testing.checks import judge
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.attention import NativeAttention
from headstock_xeon.kernels.register import BUILDERS, FUNCTIONS, PROVIDER, register
from headstock_xeon.kernels.sampling import SamplingKernels
from tests.kernels.xeon.conftest import SETS

NAMES = [
    op.name for kernels in FUNCTIONS for run in vars(kernels).values() for op, _ in offers_of(run)
]
BUILT = sorted({op.name for builder in BUILDERS for op, _ in offers_of(builder)})


@pytest.mark.parametrize("name", [*NAMES, *BUILT])
def test_an_op_is_as_its_reference(device: XeonDevice, name: str) -> None:
    registry, op = OpRegistry(), load_all_ops()[name]
    register(registry, device)
    bench = Bench(resolver=Resolver(registry, device), dtype=torch.float32)
    own = [found for found in registry.offered(op) if found.provider == PROVIDER]
    verdicts = [judge(op, implementation, [bench]) for implementation in own]
    assert verdicts
    for verdict in verdicts:
        assert verdict.num_checked
        assert not verdict.findings, "\n".join(map(str, verdict.findings))


def test_each_op_is_offered_once_for_what_it_requires(device: XeonDevice) -> None:
    registry = OpRegistry()
    register(registry, device)
    counts = {
        name: sum(found.provider == PROVIDER for found in registry.offered(load_all_ops()[name]))
        for name in (*NAMES, *BUILT)
    }
    several = {"attention", "linear", "experts"}
    assert {name for name, count in counts.items() if count != 1} == several


@pytest.mark.parametrize("instruction_set", SETS, indirect=True)
def test_the_likeliest_of_equals_are_the_first(device: XeonDevice) -> None:
    logits_SV = torch.zeros(2, 100)
    logits_SV[1, [7, 60, 99]] = 2.0
    _, top_SK, ids_SK, _ = SamplingKernels(device).token_logprobs(
        logits_SV, torch.tensor([0, 7]), torch.zeros(2, 1, dtype=torch.int64), k=4
    )
    assert ids_SK.tolist() == [[0, 1, 2, 3], [7, 60, 99, 0]]
    want_SK = logits_SV.log_softmax(1).topk(4).values
    torch.testing.assert_close(top_SK, want_SK)


@pytest.mark.parametrize("faulty", [torch.nan, torch.inf])
def test_logprobs_of_faulty_logits_are_no_numbers(device: XeonDevice, faulty: float) -> None:
    logits_SV = torch.randn(2, 33, generator=torch.Generator().manual_seed(1))
    ids = (torch.tensor([3, 4]), torch.tensor([[5], [6]]))
    want = token_logprobs.reference(logits_SV, *ids, k=2)
    logits_SV[0, 20] = faulty
    chosen_S, top_SK, _, asked_SB = SamplingKernels(device).token_logprobs(logits_SV, *ids, k=2)
    assert torch.isnan(torch.cat((chosen_S[:1], top_SK[0], asked_SB[0]))).all()
    torch.testing.assert_close(chosen_S[1], want[0][1])


def test_windows_to_both_sides_are_native(device: XeonDevice) -> None:
    registry = OpRegistry()
    register(registry, device)
    features = frozenset({BIDIRECTIONAL, BOTH_SIDES, "sliding_window"})
    spec = replace(plain_spec(torch.float32, 16), features=features, window=5)
    assert Resolver(registry, device).own(attention, spec.as_spec()) is NativeAttention
