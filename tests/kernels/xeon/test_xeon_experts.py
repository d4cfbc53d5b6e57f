"""The native experts: loads and layouts, batches and threads, captured steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headstock.ops import load_all_ops
from headstock.ops.base import Implementation, OpRegistry, Requires, Resolver
from headstock.ops.cases.base import Bench, Draw
from headstock.ops.cases.moe import draw_experts, load_experts, ragged
from headstock.ops.linear import DENSE, INT4_GROUP, INT8_GROUP
from headstock.ops.moe import ExpertsSpec, experts
from headstock.plugins.device import GraphKey
from headstock.testing.checks import judge
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels import experts as native
from headstock_xeon.kernels.experts import NativeExperts, RoutingKernels
from headstock_xeon.kernels.steps import StepKernels
from headstock_xeon.native import FEATURES, MODEL
from tests.kernels.xeon.conftest import SETS

LAYOUTS = {"float32": (DENSE, 0), "int8": (INT8_GROUP, 32), "int4": (INT4_GROUP, 32)}
ON_EACH_SET = pytest.mark.parametrize("instruction_set", SETS, indirect=True)
SPEC = ExpertsSpec(
    hidden_size=96,
    intermediate_size=64,
    num_experts=9,
    experts_per_token=3,
    dtype=torch.float32,
)


def spec_of(kind: str) -> ExpertsSpec:
    layout, group_size = LAYOUTS[kind]
    return replace(SPEC, layout=layout, group_size=group_size)


def inputs(spec: ExpertsSpec, num_tokens: int, device) -> tuple[Tensor, Tensor, Tensor]:
    draw = Draw(device.torch_device, seed=3)
    x_TD = draw.normal(num_tokens, spec.hidden_size)
    chosen = ragged(spec, num_tokens, device)
    chosen[::5, 0] = -1
    return x_TD, draw.uniform(num_tokens, spec.experts_per_token), chosen


def packed(spec: ExpertsSpec, device) -> NativeExperts:
    provider = NativeExperts(spec, device)
    load_experts(provider, draw_experts(spec, Draw(device.torch_device, seed=1)))
    return provider


@ON_EACH_SET
@pytest.mark.parametrize("name", ["route_topk", "experts"])
def test_the_cases_of_the_ops_come_out_right(device, name: str) -> None:
    op = load_all_ops()[name]
    layouts = frozenset({"", DENSE, INT8_GROUP, INT4_GROUP})
    run = {"route_topk": RoutingKernels(device).route_topk, "experts": NativeExperts}[name]
    implementation = Implementation(
        op=name, provider="xeon", run=run, requires=Requires(layouts=layouts)
    )
    bench = Bench(resolver=Resolver(OpRegistry(), device), dtype=torch.float32)
    verdict = judge(op, implementation, [bench])
    assert verdict.num_checked >= 15
    assert not verdict.findings, "\n".join(map(str, verdict.findings))


@ON_EACH_SET
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_token_s_bits_do_not_depend_on_its_neighbours(device, kind: str) -> None:
    spec = spec_of(kind)
    provider = packed(spec, device)
    x_TD, weights_Tk, chosen_Tk = inputs(spec, 83, device)
    together = provider(x_TD, weights_Tk, chosen_Tk)
    for begin, end in ((0, 1), (1, 2), (5, 11), (40, 83)):
        some = slice(begin, end)
        alone = provider(x_TD[some], weights_Tk[some], chosen_Tk[some])
        assert torch.equal(alone, together[some])


@ON_EACH_SET
def test_a_token_s_bits_do_not_depend_on_its_neighbours_outliers(device, with_outliers) -> None:
    # Of the three groups of SPEC none can stand out in its row.
    spec = replace(spec_of("int4"), hidden_size=256, intermediate_size=256)
    provider = packed(spec, device)
    _, weights_Tk, chosen_Tk = inputs(spec, 83, device)
    x_TD = with_outliers(83, 256)
    together = provider(x_TD, weights_Tk, chosen_Tk)
    alone = [
        provider(x_TD[t : t + 1], weights_Tk[t : t + 1], chosen_Tk[t : t + 1]) for t in range(83)
    ]
    assert torch.equal(torch.cat(alone), together)


@ON_EACH_SET
@pytest.mark.parametrize("kind", LAYOUTS)
def test_bits_do_not_depend_on_the_number_of_threads(open_device, kind: str) -> None:
    spec = spec_of(kind)
    results = []
    for num_threads in (1, 2, 5):
        device = open_device(num_threads)
        results.append(packed(spec, device)(*inputs(spec, 50, device)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@ON_EACH_SET
def test_more_tokens_than_go_at_a_time_have_the_same_bits(device, monkeypatch) -> None:
    provider, given = packed(SPEC, device), inputs(SPEC, 50, device)
    wanted = provider(*given)
    monkeypatch.setattr(native, "MAX_TOKENS", 7)
    assert torch.equal(provider(*given), wanted)


@ON_EACH_SET
def test_experts_loaded_from_bfloat16_stay_half_as_large(device) -> None:
    weights = draw_experts(SPEC, Draw(device.torch_device, seed=1))
    halves = {at: {"weight": part["weight"].bfloat16()} for at, part in weights.items()}
    narrow, wide = NativeExperts(SPEC, device), NativeExperts(SPEC, device)
    load_experts(narrow, halves)
    load_experts(wide, {at: {"weight": part["weight"].float()} for at, part in halves.items()})
    assert narrow.num_bytes < 0.6 * wide.num_bytes
    given = inputs(SPEC, 21, device)
    # A product of bfloat16 numbers keeps 16 bits of an activation; three products follow another.
    torch.testing.assert_close(narrow(*given), wide(*given), rtol=3 * 2**-16, atol=3 * 2**-16)


@ON_EACH_SET
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_captured_mixture_has_the_bits_of_an_eager_one(device, kind: str) -> None:
    spec, routing, steps = spec_of(kind), RoutingKernels(device), StepKernels(device)
    provider = packed(spec, device)
    x_TD, logits_TE = torch.randn(6, spec.hidden_size), torch.randn(6, spec.num_experts)
    out_TD = torch.zeros(6, spec.hidden_size)

    def compute() -> Tensor:
        return provider(x_TD, *routing.route_topk(logits_TE, k=3, is_normalized=True))

    graph = device.capture(
        GraphKey("uniform", 6, 6, query=1), lambda: steps.keep_rows(compute(), out_TD)
    )
    assert graph.torch_calls == ()
    assert graph.num_instructions == 3
    for _ in range(5):
        x_TD.normal_()
        logits_TE.normal_()
        graph.replay()
        assert torch.equal(out_TD, compute())


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("float32", ("avx512",)),
        ("int8", ("avx512", "avx512_vnni")),
        ("int8", ("avx512", "avx512_vnni", "amx_int8")),
        ("int4", ("avx512", "avx512_vnni")),
    ],
)
def test_models_of_newer_processors_have_the_bits_of_avx2(library, kind: str, names) -> None:
    spec, results = spec_of(kind), []
    newer = sum(FEATURES[name] for name in names) | MODEL
    for features in (FEATURES["avx2"], FEATURES["avx2"] | newer):
        device = XeonDevice("test", library, num_threads=1, features=features)
        results.append(packed(spec, device)(*inputs(spec, 37, device)))
        device.close()
    assert torch.equal(*results)


@pytest.mark.parametrize("names", [("avx512_bf16",), ("avx512_bf16", "amx_bf16")])
def test_bfloat16_experts_on_models_of_newer_processors_are_close(library, names) -> None:
    bits = sum(FEATURES[name] for name in ("avx2", "avx512", *names))
    device = XeonDevice("test", library, num_threads=1, features=bits | MODEL)
    weights = draw_experts(SPEC, Draw(device.torch_device, seed=1))
    halves = {at: {"weight": part["weight"].bfloat16()} for at, part in weights.items()}
    ours, right = NativeExperts(SPEC, device), experts.reference(SPEC, device)
    for provider in (ours, right):
        load_experts(provider, halves)
    given = inputs(SPEC, 37, device)
    torch.testing.assert_close(ours(*given), right(*given), rtol=1e-4, atol=1e-4)
    device.close()
