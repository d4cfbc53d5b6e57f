"""Native linear attention: the op's cases, threads, and tokens that do not know their step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headstock.ops import load_all_ops
from headstock.ops.attention import StepBatch
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.base import Bench
from headstock.ops.cases.batches import make_step
from headstock.ops.cases.linear_attention import (
    go_on,
    make_delta_inputs,
    pages_of,
    plain_linear_spec,
)
from headstock.ops.linear_attention import LinearAttentionSpec
from headstock.testing.checks import judge
from headstock_xeon.kernels.register import register
from headstock_xeon.kernels.states import NativeLinearAttention

CPU = torch.device("cpu")
SPEC = plain_linear_spec(torch.float32)
LENGTH = 150


BY_CHANNEL = replace(SPEC, decays_by_channel=True)


@pytest.mark.parametrize("name", ["linear_attention", "gated_norm", "gate_features"])
def test_it_equals_the_reference(device, name: str) -> None:
    registry = OpRegistry()
    register(registry, device)
    op = load_all_ops()[name]
    (own,) = [i for i in registry.offered(op) if i.provider == "xeon"]
    bench = Bench(resolver=Resolver(registry, device), dtype=torch.float32)
    verdict = judge(op, own, [bench])
    assert verdict.num_checked >= 5
    assert not verdict.findings, "\n".join(map(str, verdict.findings))


def cut(device, cuts: list[int], spec: LinearAttentionSpec = SPEC) -> Tensor:
    """Compute the same tokens in steps that end at ``cuts``, each with a state on a new page."""
    provider = NativeLinearAttention(spec, device)
    inputs = make_delta_inputs(spec, [(LENGTH, LENGTH)], CPU)
    kv = torch.full(provider.kv_shape(len(cuts) + 2), torch.nan)
    outs: list[Tensor] = []
    for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, LENGTH], strict=True)):
        batch = step_of(begin, end, number)
        tokens = replace(
            inputs,
            qkv_rows=[inputs.qkv_rows[0][begin:end]],
            b_rows=[inputs.b_rows[0][begin:end]],
            a_rows=[inputs.a_rows[0][begin:end]],
        )
        outs.append(go_on(provider, kv, batch, tokens))
    return torch.cat(outs)


def step_of(begin: int, end: int, number: int) -> StepBatch:
    batch = make_step([(end - begin, end)], 16, CPU).batch
    return replace(batch, page_table_RP=pages_of([(number, number + 1)], CPU), groups=())


@pytest.mark.parametrize("spec", [SPEC, BY_CHANNEL], ids=["by-head", "by-channel"])
@pytest.mark.parametrize("cuts", [[1], [2, 3], [32], [31, 64, 65], list(range(1, LENGTH))])
def test_a_token_has_the_same_bits_wherever_its_prompt_is_cut(device, cuts, spec) -> None:
    assert torch.equal(cut(device, cuts, spec), cut(device, [], spec))


@pytest.mark.parametrize("spec", [SPEC, BY_CHANNEL], ids=["by-head", "by-channel"])
def test_results_have_the_same_bits_on_any_number_of_threads(open_device, spec) -> None:
    one, two, three = (cut(open_device(n), [40], spec) for n in (1, 2, 3))
    assert torch.equal(one, two)
    assert torch.equal(one, three)
