"""Feed-forward layers join gate and up features by the activation that they are built with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN, XIELUActivation

from headstock.graph.feed_forward import GatedMLP
from headstock.graph.loader import allocate
from headstock.graph.module import Module
from headstock.graph.source import CheckpointSource
from headstock.ops.activation_kinds import (
    BY_CONFIG_NAME,
    GELU_TANH,
    SILU,
    Activation,
    clipped_swiglu,
    xielu,
)
from headstock.ops.base import OpRegistry, Requires, Resolver
from headstock.ops.linear import GATED, LinearSpec, linear
from headstock.ops.linear_reference import DenseLinear
from headstock.plugins.host import HostDevice
from tests.models.harness import context


class SiluOnly(DenseLinear):
    """Fuses the product with SiLU, whatever else it is asked."""

    num_built = 0

    def __init__(self, spec: LinearSpec, device: HostDevice) -> None:
        super().__init__(spec, device)
        SiluOnly.num_built += spec.is_gated

    def __call__(self, x_MI: Tensor) -> Tensor:
        gate, up = self.multiply(x_MI).chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up if self.spec.is_gated else super().__call__(x_MI)


def resolver() -> Resolver:
    registry = OpRegistry()
    requires = Requires(features=frozenset({GATED}))
    registry.add(linear, "fused", SiluOnly, requires=requires)
    return Resolver(registry, HostDevice())


class Holder(Module):
    def __init__(self, mlp: GatedMLP) -> None:
        self.mlp = mlp


@pytest.mark.parametrize("activation", [SILU, GELU_TANH, clipped_swiglu(0.5, 1.7)])
def test_a_provider_that_fuses_silu_computes_no_other_activation(activation: Activation) -> None:
    mlp = GatedMLP(context(ops=resolver()), 8, 6, activation)
    before = SiluOnly.num_built
    allocate(Holder(mlp), {})  # type: ignore[arg-type]
    assert SiluOnly.num_built - before == (activation is SILU)
    weights = {}
    for name, layer, shape in (
        ("gate_proj", mlp.gate_up, (6, 8)),
        ("up_proj", mlp.gate_up, (6, 8)),
        ("down_proj", mlp.down, (8, 6)),
    ):
        weights[name] = torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))
        layer.load(f"{name}.weight", Given(weights[name]))
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    joined = activation.join(x @ weights["gate_proj"].T, x @ weights["up_proj"].T)
    torch.testing.assert_close(mlp(x), joined @ weights["down_proj"].T, rtol=1e-5, atol=1e-5)


class Given(CheckpointSource):
    """A tensor in memory."""

    def __init__(self, tensor: Tensor) -> None:
        from headstock.quantization.plan import Layout

        self.layout, self.shape, self._tensor = Layout(), tuple(tensor.shape), tensor

    def read(self, begin: int, end: int) -> dict[str, Tensor]:
        return {"weight": self._tensor[begin:end]}


@pytest.mark.parametrize("name", BY_CONFIG_NAME)
def test_activations_of_configurations_are_those_of_transformers(name: str) -> None:
    gate, up = torch.linspace(-9, 9, 401), torch.linspace(-2, 3, 401)
    wanted = ACT2FN[name](gate) * up
    torch.testing.assert_close(BY_CONFIG_NAME[name].join(gate, up), wanted)


def test_xielu_is_that_of_transformers() -> None:
    theirs = XIELUActivation().float().requires_grad_(False)
    softplus = torch.nn.functional.softplus
    ours = xielu(
        float(softplus(theirs.alpha_p)),
        float(theirs.beta + softplus(theirs.alpha_n)),
        float(theirs.beta),
        float(theirs.eps),
    )
    gate = torch.linspace(-9, 9, 401)
    torch.testing.assert_close(ours.join(gate, torch.ones_like(gate)), theirs(gate))
