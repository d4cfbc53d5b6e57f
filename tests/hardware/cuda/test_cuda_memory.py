"""A card without memory left: a clear error at load; later, an engine that lives."""

from __future__ import annotations

import json

import pytest
import torch

if not torch.cuda.is_available() or torch.version.hip is not None:
    pytest.skip("no NVIDIA GPU", allow_module_level=True)

import headstock
from headstock.errors import ConfigError, RequestError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
PROMPT = [7 + i % 1000 for i in range(6000)]


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return str(tmp_path)


def engine(model, **settings):
    fixed = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "bfloat16"}
    return headstock.Engine(model=model, backend="cuda", **(fixed | settings))


def take_all(leave: int = 0) -> list[torch.Tensor]:
    """Take the card's memory but for ``leave`` bytes, by ever smaller pieces."""
    taken, size = [], 8 << 30
    while size >= 1 << 20:
        try:
            if torch.cuda.mem_get_info()[0] - size < leave:
                raise torch.OutOfMemoryError
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return taken


def test_a_cache_that_does_not_fit_is_refused_with_what_would(model):
    with pytest.raises(ConfigError, match=r"Set --cache-tokens to \d+ at most"):
        engine(model, cache_tokens=1 << 34)


def test_weights_that_do_not_fit_are_refused(model):
    taken = take_all(leave=200 << 20)
    with pytest.raises(ConfigError, match="memory"):
        engine(model)
    del taken
    torch.cuda.empty_cache()


def test_a_step_without_memory_ends_its_request_and_the_engine_lives(model):
    how = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    with engine(model, memory_fraction=0.3, prefix_cache=False) as serving:
        before = serving.generate(input_ids=PROMPT, sampling_params=how)["output_ids"]
        torch.cuda.empty_cache()
        taken = take_all()
        with pytest.raises(RequestError, match="ran out of memory in a step of"):
            serving.generate(input_ids=PROMPT, sampling_params=how)
        del taken
        torch.cuda.empty_cache()
        assert serving.generate(input_ids=PROMPT, sampling_params=how)["output_ids"] == before
