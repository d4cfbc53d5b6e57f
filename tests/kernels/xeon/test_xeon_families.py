"""Families with windows, caps and gates of their own, natively, against transformers."""

from __future__ import annotations

import pytest
import torch

from headstock.ops.base import OpRegistry, Resolver
from headstock_xeon.kernels.register import PROVIDER, register
from tests.models.conftest import Save, save  # noqa: F401 - a fixture
from tests.models.harness import context, load

FAMILIES = {
    "gemma2": {"head_dim": 32},
    "gemma3": {},
    "gpt_oss": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_transformers(device, save: Save, family: str) -> None:  # noqa: F811
    saved = save(family, **FAMILIES[family])
    registry = OpRegistry()
    register(registry, device)
    ctx = context(ops=Resolver(registry, device), page_size=16)
    sequences = load(saved.path, ctx)
    ids = torch.randint(0, 128, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    got = torch.cat([sequences.step(a=ids[:40]), *(sequences.step(a=[i]) for i in ids[40:])])
    want = saved.logits(ids)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    plain = {r.op for r in ctx.ops.resolutions if r.provider != PROVIDER}
    assert not plain, f"{plain} have no kernel of their own"
