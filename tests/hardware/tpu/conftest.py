"""A small model served on torch-xla's CPU device. `make tpu-test` builds the environment."""

from __future__ import annotations

import random

import pytest

from headstock.assemble.local import run_greedy

SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 307,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
SETTINGS = {
    "dtype": "float32",
    "cache_tokens": 1024,
    "max_running_requests": 4,
    "chunked_prefill_size": 48,
}
ON_XLA = {"backend": "tpu", "backend_option": ["pjrt=cpu"]}


def prompts_of(*lengths: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, 300) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="session")
def reference():
    """Return a function: the ids that the reference backend gives each prompt alone."""

    def run(config, prompts, num_tokens, **settings):
        alone = SETTINGS | {"backend": "reference", "prefix_cache": False}
        return [
            run_greedy(config, [prompt], num_tokens, **(alone | settings))[0] for prompt in prompts
        ]

    return run
