"""Native short convolutions, state spaces and gates: the ops' cases, and tokens cut anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headstock.ops import load_all_ops
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.base import Bench
from headstock.ops.cases.batches import make_step
from headstock.ops.cases.mamba2 import make_mamba2_inputs, plain_mamba2_spec
from headstock.ops.cases.short_convolution import make_convolution_inputs, plain_convolution_spec
from headstock.ops.cases.states import StateInputs, go_on, pages_of
from headstock.testing.checks import judge
from headstock.testing.oracle.case import prompt
from headstock.testing.oracle.claims import assert_close
from headstock.testing.oracle.sequences import context
from headstock_xeon.kernels.register import PROVIDER, register
from headstock_xeon.kernels.states import NativeMamba2, NativeShortConvolution
from tests.models.cases import CASES

CPU = torch.device("cpu")
LENGTH = 80
NAMES = [
    "short_convolution",
    "selective_scan",
    "gate_heads",
    "mamba2",
    "gate_by_silu",
    "gated_group_norm",
    "weigh_features",
    "scale_features",
    "add_features",
    "scale_by_position",
    "scale_tokens",
]


@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_reference(device, name: str) -> None:
    registry = OpRegistry()
    register(registry, device)
    op = load_all_ops()[name]
    (own,) = [i for i in registry.offered(op) if i.provider == "xeon"]
    bench = Bench(resolver=Resolver(registry, device), dtype=torch.float32)
    verdict = judge(op, own, [bench])
    assert verdict.num_checked >= 3
    assert not verdict.findings, "\n".join(map(str, verdict.findings))


def made(device, kind: str) -> tuple[NativeMamba2 | NativeShortConvolution, StateInputs]:
    rows = [(LENGTH, LENGTH)]
    if kind == "mamba2":
        spec = plain_mamba2_spec(torch.float32)
        return NativeMamba2(spec, device), make_mamba2_inputs(spec, rows, CPU)
    spec = plain_convolution_spec(torch.float32)
    return NativeShortConvolution(spec, device), make_convolution_inputs(spec, rows, CPU)


def cut(device, kind: str, cuts: list[int]) -> Tensor:
    """Compute the same tokens in steps that end at ``cuts``, each with a state on a new page."""
    provider, inputs = made(device, kind)
    kv = torch.full(provider.kv_shape(len(cuts) + 2), torch.nan)
    outs: list[Tensor] = []
    for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, LENGTH], strict=True)):
        batch = make_step([(end - begin, end)], 16, CPU).batch
        table = pages_of([(number, number + 1)], CPU)
        batch = replace(batch, page_table_RP=table, groups=())
        part = StateInputs(tuple([[x[0][begin:end]] for x in inputs.parts]), inputs.weights)
        outs.append(go_on(provider, kv, batch, part))
    return torch.cat(outs)


@pytest.mark.parametrize("kind", ["mamba2", "short_convolution"])
@pytest.mark.parametrize("cuts", [[1], [2, 3], [31, 33, 64], list(range(1, LENGTH))])
def test_a_token_has_the_same_bits_wherever_its_prompt_is_cut(device, kind, cuts) -> None:
    assert torch.equal(cut(device, kind, cuts), cut(device, kind, []))


@pytest.mark.parametrize("kind", ["mamba2", "short_convolution"])
def test_results_have_the_same_bits_on_any_number_of_threads(open_device, kind: str) -> None:
    one, three = (cut(open_device(n), kind, [40]) for n in (1, 3))
    assert torch.equal(one, three)


STATES = ["lfm2", "lfm2moe", "bamba", "granitemoehybrid", "falconh1", "nemotronh", "jamba"]
FAMILIES = [*STATES, "hunyuandensev1", "llama4"]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_the_logits_of_transformers(device, tmp_path: Path, family: str) -> None:
    (case,) = [case for case in CASES if case.name == family]
    saved = case.save(tmp_path)
    registry = OpRegistry()
    register(registry, device)
    ctx = context(ops=Resolver(registry, device), page_size=16)
    sequences = saved.load(ctx)
    ids = prompt(50)
    got = torch.cat([sequences.step(a=ids[:40]), *(sequences.step(a=[i]) for i in ids[40:])])
    assert_close(got, saved.logits(ids))
    plain = {r.op for r in ctx.ops.resolutions if r.provider != PROVIDER}
    assert not plain, f"{plain} have no kernel of their own"
