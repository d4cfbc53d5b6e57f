"""What Triton's ops require is what they are asked for: the kit's rule, without a card."""

from __future__ import annotations

import pytest
import torch
from triton_here import Here

from headstock.ops import load_all_ops
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.base import Bench
from headstock.ops.cases.table import cases_of
from headstock.plugins.host import HostDevice
from headstock_triton.register import register_ops


class Hopper(Here):
    """As much of a card as choosing looks at."""

    torch_device = torch.device("cpu")
    capabilities = frozenset({"sm_90"})


OFFERED = OpRegistry()
register_ops(OFFERED, Hopper())
OPS = [op for _, op in sorted(load_all_ops().items()) if OFFERED.offered(op)]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_sizes_and_features_are_ones_that_the_op_is_resolved_with(op) -> None:
    bench = Bench(resolver=Resolver(OpRegistry(), HostDevice()), dtype=torch.bfloat16)
    cases = cases_of(op)
    if cases is None:
        pytest.skip("the op has no cases")
    specs = [case.spec for case in cases(bench)]
    sizes = {name for spec in specs for name in spec.sizes}
    features = {name for spec in specs for name in spec.features} | op.features
    for implementation in OFFERED.offered(op):
        assert set(implementation.requires.sizes) <= sizes
        assert implementation.requires.features <= features
