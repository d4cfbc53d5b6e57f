"""Two cards, a slice of every layer on each: the tokens of one card."""

from __future__ import annotations

import random

import pytest
import torch
import transformers

if torch.version.hip is not None or torch.cuda.device_count() < 2:
    pytest.skip("fewer than two NVIDIA GPUs", allow_module_level=True)

import headstock

draw = random.Random(7)
PROMPTS = [[draw.randrange(3, 500) for _ in range(n)] for n in (1, 7, 30, 100, 150, 64, 9, 33)]
SAMPLING = {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(3)
    config = transformers.Qwen3Config(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=500,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=2,
    )
    path = str(tmp_path_factory.mktemp("qwen3"))
    transformers.Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def outputs(model, **settings):
    fixed = {"backend": "cuda", "skip_tokenizer_init": True, "cache_tokens": 4096}
    with headstock.Engine(model=model, **(fixed | settings)) as engine:
        results = [
            engine.generate(input_ids=prompts, sampling_params=SAMPLING)
            for prompts in (PROMPTS, PROMPTS[3:5])  # the second time from the cache
        ]
    return [result["output_ids"] for batch in results for result in batch]


@pytest.mark.parametrize("graphs", [True, False])
def test_two_cards_give_the_tokens_of_one_in_float32(model, graphs):
    one = outputs(model, dtype="float32")
    assert outputs(model, dtype="float32", tp_size=2, graphs=graphs) == one


def test_two_cards_in_bfloat16_give_the_same_tokens_each_time(model):
    first = outputs(model, dtype="bfloat16", tp_size=2)
    assert outputs(model, dtype="bfloat16", tp_size=2) == first
    assert len({tuple(ids) for ids in first}) > 3  # they are not all one repeated answer
