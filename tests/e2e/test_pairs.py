"""Features in pairs, on a small model: a request draws what it draws alone, with nothing else on.

The model is served twice. Once plainly: without cached prefixes, drafts or neighbours. Once with
all of it: adapters and grammars in one batch, drafts beside them, and then again on cached
prefixes. What excludes what is in ``headstock.config.exclusions``.
"""

from __future__ import annotations

import asyncio
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import headstock
from tests.models.adapters import adapt
from tests.models.conftest import FAMILIES, SIZES, randomize
from tests.vision.conftest import TEMPLATE, save_tokenizer

PATTERN = "[a-f]{3}( [0-9]{2}){1,4}"
TEXT = "one two one two one two three, and"
SETTINGS: dict[str, Any] = {
    "backend": "reference",
    "dtype": "float32",
    "cache_tokens": 4096,
    "max_model_len": 256,
    "chunked_prefill_size": 64,
}

pytestmark = pytest.mark.slow


def asked(adapter: str | None, pattern: str | None) -> dict[str, Any]:
    params: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0, "sampling_seed": 1}
    params |= {"ignore_eos": True} if pattern is None else {"regex": pattern}
    params["logit_bias"] = {"97": 9.0, "98": 9.0}  # with random weights little repeats else
    given: dict[str, Any] = {"prompt": TEXT, "sampling_params": params}
    return given if adapter is None else given | {"lora_name": adapter}


REQUESTS = [asked(*pair) for pair in product((None, "one"), (None, PATTERN))]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model of random weights, with an adapter."""
    folder: Path = tmp_path_factory.mktemp("pairs")
    config_type, model_type, given = FAMILIES["llama"]
    torch.manual_seed(0)
    oracle = model_type(config_type(**SIZES | given | {"vocab_size": 272, "eos_token_id": 258}))
    randomize(oracle.eval())
    oracle.save_pretrained(folder / "model")
    save_tokenizer(folder / "model", TEMPLATE)
    modules = ["o_proj", "down_proj"]
    adapter = adapt(oracle, folder / "adapter", seed=1, target_modules=modules)
    return SETTINGS | {"model": str(folder / "model"), "loras": {"one": str(adapter.path)}}


def together(engine: headstock.Engine) -> list[dict[str, Any]]:
    """Hand all requests over at once: so they run side by side."""

    async def run() -> list[dict[str, Any]]:
        return await asyncio.gather(*(engine.async_generate(**one) for one in REQUESTS))

    return asyncio.run(run())


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_requests_together_draft_and_hit_as_each_draws_alone(
    settings: dict[str, Any], kv_dtype: str
) -> None:
    with headstock.Engine(**settings, kv_dtype=kv_dtype, prefix_cache=False) as engine:
        alone = [engine.generate(**one)["output_ids"] for one in REQUESTS]
    assert len({tuple(ids) for ids in alone}) > len(REQUESTS) // 2, "what is asked changes little"
    with headstock.Engine(**settings, kv_dtype=kv_dtype, speculation="ngram") as engine:
        cold, answers = together(engine), together(engine)
    assert [answer["output_ids"] for answer in cold] == alone
    assert [answer["output_ids"] for answer in answers] == alone
    assert all(answer["meta_info"]["cached_tokens"] > 0 for answer in answers)
    assert all(re.fullmatch(PATTERN, answers[row]["text"]) for row in (1, 3))
    assert any(answer["meta_info"].get("spec_accept_token_num", 0) for answer in answers)
