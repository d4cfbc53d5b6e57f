"""Tensor parallel ranks give the logits of one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headstock.errors import ConfigError
from headstock.testing.oracle.ranks import ThreadGroup, on_ranks
from tests.models.conftest import Save
from tests.models.harness import context, load

IDS = list(range(3, 40, 3))


FAMILIES = ["llama", "qwen3", "qwen3_moe", "gemma2", "gemma3", "gpt_oss", "deepseek_v3"]
FAMILIES += ["qwen3_next"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("size", "options"),
    [
        pytest.param(2, {}, id="2"),
        pytest.param(4, {}, id="4-share-2-kv-heads"),
        pytest.param(2, {"tie_word_embeddings": True, "vocab_size": 131}, id="2-odd-vocabulary"),
        pytest.param(2, {"attention_bias": True}, id="2-biases"),
    ],
)
def test_ranks_have_the_logits_of_one(
    save: Save, family: str, size: int, options: dict[str, object]
) -> None:
    saved = save(family, **options)
    want = saved.logits(IDS)

    def run(group: ThreadGroup) -> Tensor:
        with torch.no_grad():
            return load(saved.path, context(tp=group)).step(a=IDS)

    for got in on_ranks(size, run):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_ranks_have_the_logits_of_one(save: Save, quantization: str) -> None:
    saved = save("llama", intermediate_size=128)
    want = load(saved.path, context(quantization=quantization)).step(a=IDS)

    def run(group: ThreadGroup) -> Tensor:
        return load(saved.path, context(tp=group, quantization=quantization)).step(a=IDS)

    for got in on_ranks(2, run):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_heads_that_do_not_divide_are_refused_by_size(save: Save) -> None:
    saved = save("llama", num_attention_heads=9, num_key_value_heads=3, hidden_size=72)
    group = ThreadGroup(0, 2, None, [])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tp_size is 2.*9 heads of 8"):
        load(saved.path, context(tp=group))
