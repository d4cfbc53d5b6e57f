"""Gemma 4 and Laguna on native kernels: their ops by the kit's cases, and whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headstock.ops import load_all_ops
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.base import Bench
from headstock.testing.checks import judge
from headstock.testing.oracle.case import prompt
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.register import PROVIDER, register
from tests.models.cases import CASES
from tests.models.harness import context

OPS = ["rotate_and_write", "rotate_queries", "activate_and_mul", "weigh_experts"]
OPS += ["gate_by_softplus", "silu_and_mul", "gate_heads"]
MODELS = ["gemma4", "gemma4-experts", "laguna"]


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_as_its_reference(device: XeonDevice, name: str) -> None:
    registry, op = OpRegistry(), load_all_ops()[name]
    register(registry, device)
    (own,) = [found for found in registry.offered(op) if found.provider == PROVIDER]
    bench = Bench(resolver=Resolver(registry, device), dtype=torch.float32)
    verdict = judge(op, own, [bench])
    assert verdict.num_checked > 2
    assert not verdict.findings, "\n".join(map(str, verdict.findings))


@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_those_of_transformers(
    device: XeonDevice, tmp_path: Path, name: str
) -> None:
    saved = next(case for case in CASES if case.name == name).save(tmp_path)
    registry = OpRegistry()
    register(registry, device)
    ctx = context(ops=Resolver(registry, device), page_size=16)
    sequences, ids = saved.load(ctx), prompt(60, seed=3)
    got = torch.cat([sequences.step(a=ids[:40]), *(sequences.step(a=[i]) for i in ids[40:])])
    want = saved.logits(ids)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    plain = {r.op for r in ctx.ops.resolutions if r.provider != PROVIDER}
    assert not plain, f"{plain} have no kernel of their own"
