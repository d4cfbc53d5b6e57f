"""Models leave out what nobody asks for past the last attention, and what is asked for is equal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.models.conftest import Save
from tests.models.harness import load


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_step_that_wants_last_tokens_gives_those_and_their_logits(
    save: Save, family: str
) -> None:
    path = save(family).path
    prompts = {"a": [5, 9, 1, 77, 31], "b": [3], "c": [8, 8, 2]}
    ids_T = torch.tensor([token for ids in prompts.values() for token in ids])
    want = load(path).step(**prompts)[[4, 5, 8]]
    sequences = load(path)
    batch = sequences.batch({name: len(ids) for name, ids in prompts.items()})
    batch = replace(batch, wants_last=True)
    for provider in sequences.ctx.providers.values():
        provider.plan(batch)
    hidden_RD = sequences.model(ids_T, batch)
    assert hidden_RD.shape[0] == len(prompts)
    got = sequences.model.logits(hidden_RD)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sequences.model.scores(hidden_RD), got)
