"""A model that transformers' own class serves, natively: its captured decode step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headstock.ops.base import OpRegistry, Resolver
from headstock.plugins.device import GraphKey
from headstock.testing.oracle.sequences import context
from headstock_xeon.kernels.register import register
from tests.models.test_fallback import case


@pytest.mark.parametrize("stem", ["Llama", "Arcee", "Cwm"])
def test_a_captured_step_calls_no_pytorch(device, tmp_path: Path, stem: str) -> None:
    registry = OpRegistry()
    register(registry, device)
    ctx = context(ops=Resolver(registry, device), page_size=16)
    saved = case(stem, {}).save(tmp_path)
    sequences = saved.load(ctx)
    sequences.step(a=[5, 6, 7])
    batch, ids_T = sequences.batch({"a": 1}), torch.tensor([8])
    for layer in ctx.attention_layers:
        layer.provider.plan(batch.groups[layer.group])
    made: list[torch.Tensor] = []

    def step() -> None:
        made[:] = [sequences.model.logits(sequences.model.forward(ids_T, batch))]

    with torch.inference_mode():
        graph = device.capture(GraphKey("uniform", 1, 1, query=1), step)
        graph.replay()
    assert graph.torch_calls == ()
    want = saved.logits([5, 6, 7, 8])[-1:]
    torch.testing.assert_close(made[0], want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
