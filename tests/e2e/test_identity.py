"""In float32 a request's greedy tokens do not depend on its neighbours, its chunks or the cache.

The same ids are asked of the real model alone, in a batch, in chunks, after a cache hit and after
a retraction: on the backend that this machine serves with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import headstock

OUTPUTS = 24
SHARED = "You are a helpful assistant who answers in one sentence. " * 6
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    SHARED + "What is a river?",
    SHARED + "What is a mountain, and why is it high?",
    "def fibonacci(n):\n",
    "1, 2, 3, 4, 5,",
    "List three colours. " * 30,
    "x",
]
SETTINGS: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "max_running_requests": 16}


def sampling(max_new_tokens: int = OUTPUTS) -> dict[str, Any]:
    return {"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": True}


def ids(results: list[dict[str, Any]]) -> list[list[int]]:
    return [result["output_ids"] for result in results]


@pytest.fixture(scope="module")
def engine(model: str) -> Iterator[headstock.Engine]:
    with headstock.Engine(model=model, cache_tokens=8192, **SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(engine: headstock.Engine) -> list[list[int]]:
    """Each prompt's output with nobody beside it and nothing cached."""
    outputs: list[list[int]] = []
    for prompt in PROMPTS:
        engine.flush_cache()
        result = engine.generate(prompt=prompt, sampling_params=sampling())
        assert result["meta_info"]["cached_tokens"] == 0
        outputs.append(result["output_ids"])
    return outputs


def test_neighbours_change_nothing(engine: headstock.Engine, alone: list[list[int]]) -> None:
    engine.flush_cache()
    assert ids(engine.generate(prompt=PROMPTS, sampling_params=sampling())) == alone


def test_a_cache_hit_changes_nothing(engine: headstock.Engine, alone: list[list[int]]) -> None:
    engine.generate(prompt=PROMPTS, sampling_params=sampling())
    results = engine.generate(prompt=PROMPTS, sampling_params=sampling())
    assert sum(result["meta_info"]["cached_tokens"] for result in results) > 200
    assert ids(results) == alone


def test_coming_late_changes_nothing(engine: headstock.Engine, alone: list[list[int]]) -> None:
    """Requests join at different steps of a long one."""
    engine.flush_cache()
    long_one = engine.generate(prompt="A", sampling_params=sampling(200), stream=True)
    next(long_one)
    late = [engine.generate(prompt=prompt, sampling_params=sampling()) for prompt in PROMPTS]
    long_one.close()
    assert ids(late) == alone


def test_chunks_change_nothing(model: str, alone: list[list[int]]) -> None:
    settings = {**SETTINGS, "chunked_prefill_size": 24}
    with headstock.Engine(model=model, cache_tokens=8192, **settings) as engine:
        assert ids(engine.generate(prompt=PROMPTS, sampling_params=sampling())) == alone


def test_a_retraction_changes_nothing(model: str, alone: list[list[int]]) -> None:
    """Sixteen requests in a cache of 256 tokens: some lose their pages to others."""
    settings = {**SETTINGS, "max_model_len": 256, "cache_tokens": 256}
    with headstock.Engine(model=model, **settings) as engine:
        results = engine.generate(prompt=PROMPTS * 2, sampling_params=sampling())
    assert sum(result["meta_info"]["num_retractions"] for result in results) > 0
    assert ids(results) == alone * 2


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8_e4m3"])
def test_narrow_pages_change_nothing_either(model: str, kv_dtype: str) -> None:
    """Alone, beside others, and from the cache: a token's key has one scale, whoever reads it."""
    with headstock.Engine(model=model, cache_tokens=8192, kv_dtype=kv_dtype, **SETTINGS) as engine:
        alone = [engine.generate(prompt=p, sampling_params=sampling(8)) for p in PROMPTS[:4]]
        engine.flush_cache()
        for _ in ("cold", "cached"):
            together = engine.generate(prompt=PROMPTS[:4], sampling_params=sampling(8))
            assert ids(together) == ids(alone)
