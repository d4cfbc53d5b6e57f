"""Layers with a state a row, as programs of a fixed size compute them, against their references.

Plain PyTorch on the host runs the same code that torch-xla makes programs of.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headstock.ops.base import Implementation, OpRegistry, Requires, Resolver
from headstock.ops.cases.base import Bench
from headstock.ops.linear_attention import BY_CHANNEL, linear_attention
from headstock.ops.mamba2 import mamba2
from headstock.ops.selective_scan import selective_scan
from headstock.ops.short_convolution import UNGATED, short_convolution
from headstock.plugins.host import HostDevice
from headstock.testing.checks import judge
from headstock_tpu.linear_attention import StaticLinearAttention, unit_lower_inverse
from headstock_tpu.state_layers import StaticMamba2, StaticSelectiveScan, StaticShortConvolution

BUILDERS = {
    linear_attention: StaticLinearAttention,
    mamba2: StaticMamba2,
    selective_scan: StaticSelectiveScan,
    short_convolution: StaticShortConvolution,
}


def without_host_rows(static):
    """Return a builder of providers that see nothing of the rows on the host, as programs do."""

    class Blind(static):
        def run(self, *args):
            *others, batch = args
            return super().run(*others, replace(batch, host_rows=[], groups=()))

    return Blind


@pytest.mark.parametrize("op", BUILDERS, ids=lambda op: op.name)
def test_it_equals_its_reference_without_rows_on_the_host(op):
    bench = Bench(resolver=Resolver(OpRegistry(), HostDevice()), dtype=torch.float32)
    requires = Requires(features=frozenset({BY_CHANNEL, UNGATED}) & op.features)
    implementation = Implementation(
        op=op.name, provider="tpu", run=without_host_rows(BUILDERS[op]), requires=requires
    )
    verdict = judge(op, implementation, [bench])
    assert verdict.num_checked >= 10
    assert verdict.findings == []


def test_keys_that_are_all_alike_do_not_lose_the_inverse():
    matrix = torch.ones(2, 32, 32).tril(-1)
    inverse = unit_lower_inverse(matrix)
    assert torch.equal(inverse @ (matrix + torch.eye(32)), torch.eye(32).expand(2, 32, 32))
