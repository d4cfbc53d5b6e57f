"""Models touch tensors only through ops and views, so that any way of capturing sees all of it."""

from __future__ import annotations

import pytest
import torch

from headstock.testing.oracle.watch import Watch, WatchedResolver
from tests.models.conftest import Save
from tests.models.harness import context, load


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True, "attention_bias": True}])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "deepseek_v3", "qwen3_next"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_pass_calls_ops_and_views_only(
    save: Save, family: str, options: dict[str, object], dtype: torch.dtype
) -> None:
    watch = Watch()
    sequences = load(save(family, **options).path, context(ops=WatchedResolver(watch), dtype=dtype))
    batch = sequences.batch({"a": 3, "b": 1})
    ids_T = torch.tensor([4, 5, 6, 7])
    before = watch.num_calls
    with watch:
        sequences.model.logits(sequences.model(ids_T, batch))
    num_layers = 2
    assert watch.num_calls - before >= 7 * num_layers + 4
