"""A provider that fuses the gate is asked only where the gate is the one that it fuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headstock.graph.linear import Linear
from headstock.graph.source import RandomSource
from headstock.ops.activation import silu_and_mul
from headstock.ops.base import OpRegistry, Requires, Resolver
from headstock.ops.linear import GATED, LinearSpec, linear
from headstock.plugins.host import HostDevice
from headstock.quantization.plan import Layout
from tests.models.harness import context


def gelu_and_mul(gate_up_TG: Tensor) -> Tensor:
    gate, up = gate_up_TG.chunk(2, dim=-1)
    return torch.nn.functional.gelu(gate) * up


@pytest.fixture
def fusing() -> Resolver:
    """Ops of a device whose provider of products takes the gate with it."""
    registry = OpRegistry()
    registry.add(linear, "fusing", linear.reference, requires=Requires(features=frozenset({GATED})))
    return Resolver(registry, HostDevice(num_threads=1))


@pytest.mark.parametrize(
    ("gate", "op", "is_fused"),
    [
        (silu_and_mul.reference, silu_and_mul, True),
        (silu_and_mul.reference, None, False),
        (gelu_and_mul, None, False),
    ],
)
def test_the_layer_computes_its_own_gate(fusing: Resolver, gate, op, is_fused: bool) -> None:
    ctx = context(ops=fusing)
    layer = Linear(ctx, 16, {"gate": 8, "up": 8}, gate=lambda: gate, gate_op=op)
    layer.allocate({"gate.weight": Layout(), "up.weight": Layout()})
    for leaf in layer.leaves():
        source = RandomSource(leaf.name, leaf.shape, leaf.role, torch.device("cpu"), torch.float32)
        layer.load(leaf.name, source)
    plain = LinearSpec(in_features=16, out_features=16, dtype=torch.float32)
    provider = linear.reference(plain, ctx.device)
    begin = 0
    for leaf in layer.leaves():
        source = RandomSource(leaf.name, leaf.shape, leaf.role, torch.device("cpu"), torch.float32)
        provider.load(source.read(0, 8), begin)
        begin += 8
    x_TI = torch.randn(3, 16)
    torch.testing.assert_close(layer(x_TI), gate(provider(x_TI)))
    assert any(GATED in r.spec.features for r in fusing.resolutions) == is_fused
