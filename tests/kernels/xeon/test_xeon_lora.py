"""Native additions of adapters: the op's cases, tokens that do not know their step, graphs."""

from __future__ import annotations

import torch

from headstock.ops import load_all_ops
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.base import Bench, Draw
from headstock.plugins.device import GraphKey
from headstock.testing.checks import judge
from headstock_xeon.kernels.linear import LoraKernels
from headstock_xeon.kernels.register import register

STARTS = (0, 40, 60)


def inputs(num_tokens: int) -> list[torch.Tensor]:
    draw = Draw(torch.device("cpu"), 3)
    return [
        draw.normal(num_tokens, 90),
        draw.normal(num_tokens, 203),
        draw.normal(4, 3 * 16, 203, scale=0.1),
        draw.normal(4, 90, 16, scale=0.1),
        draw.integers(num_tokens, high=5, dtype=torch.int32),
    ]


def test_it_equals_the_reference(device) -> None:
    registry = OpRegistry()
    register(registry, device)
    op = load_all_ops()["add_lora"]
    (own,) = [i for i in registry.offered(op) if i.provider == "xeon"]
    bench = Bench(resolver=Resolver(registry, device), dtype=torch.float32)
    verdict = judge(op, own, [bench])
    assert verdict.num_checked >= 12
    assert not verdict.findings, "\n".join(map(str, verdict.findings))


def test_a_token_gets_equal_bits_alone_and_among_others(device) -> None:
    add = LoraKernels(device).add_lora
    out, x, down, up, adapters = inputs(70)
    together = add(out.clone(), x, down, up, adapters, starts=STARTS)
    for token in (0, 17, 69):
        one = slice(token, token + 1)
        alone = add(out[one].clone(), x[one], down, up, adapters[one], starts=STARTS)
        assert torch.equal(alone[0], together[token])


def test_a_captured_step_follows_the_adapters_of_its_rows(device) -> None:
    add = LoraKernels(device).add_lora
    out, x, down, up, adapters = inputs(9)
    base, kept = out.clone(), torch.empty_like(out)

    def step() -> None:
        out.copy_(base)
        kept.copy_(add(out, x, down, up, adapters, starts=STARTS))

    adapters.zero_()
    graph = device.capture(GraphKey("uniform", 9, 9), step)
    assert torch.equal(kept, base)
    for places in ([1] * 9, [0, 1, 2, 3, 4, 0, 4, 4, 1]):
        adapters.copy_(torch.tensor(places))
        graph.replay()
        op = load_all_ops()["add_lora"].reference
        want = op(base, x, down, up, adapters, starts=STARTS)
        torch.testing.assert_close(kept, want, rtol=1e-4, atol=1e-5)
