"""Drafting beside masks, stops, deaths of the engine and a real model: pairs, on small models."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers

import headstock
from tests.e2e.served import served
from tests.e2e.tiny import CONFIG
from tests.models.adapters import adapt
from tests.server.toy_tokenizer import EOS, toy_backend

SETTINGS: dict[str, Any] = {"dtype": "float32", "cache_tokens": 2048, "max_running_requests": 6}
PATTERN = "[a-f]{3}( [0-9]{2}){1,4}"
BOUND = {"temperature": 0.8, "max_new_tokens": 40, "regex": PATTERN}
FREE = {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}
CHANT = FREE | {"logit_bias": {"97": 9.0, "98": 9.0}}
"""A model of random weights hardly ever repeats itself, but with these two ids."""
TEXTS = ["one two one two", "two", "three three three", "four, and four, and"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model of random weights with a tokenizer of bytes."""
    path = tmp_path_factory.mktemp("bytes")
    sizes = {name: value for name, value in CONFIG.items() if name != "architectures"}
    sizes |= {"vocab_size": 288, "eos_token_id": EOS}
    torch.manual_seed(5)
    config = transformers.LlamaConfig(**sizes, initializer_range=0.2)
    transformers.LlamaForCausalLM(config).save_pretrained(str(path))
    toy_backend().save(str(path / "tokenizer.json"))
    Path(path, "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return str(path)


def accepted(result: dict[str, Any]) -> int:
    return result["meta_info"].get("spec_accept_token_num", 0)


@pytest.mark.parametrize("overlap", [False, True])
def test_bound_requests_draw_under_their_masks_beside_drafted_ones(
    folder: str, overlap: bool
) -> None:
    params = [BOUND | {"sampling_seed": 3}, CHANT, BOUND | {"sampling_seed": 4}, FREE]
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("none", "ngram"):
        options = SETTINGS | {"speculation": name, "overlap": overlap}
        with headstock.Engine(model=folder, **options) as engine:
            found[name] = engine.generate(prompt=TEXTS, sampling_params=params)
    for mine, theirs in zip(found["ngram"], found["none"], strict=True):
        assert mine["output_ids"] == theirs["output_ids"]
    for bound in (0, 2):
        assert re.fullmatch(PATTERN, found["ngram"][bound]["text"])
        assert accepted(found["ngram"][bound]) == 0
    assert accepted(found["ngram"][1]) > 0


@pytest.mark.parametrize("backend", ["reference", "xeon"])
def test_rows_of_adapters_draft_as_they_draw(folder: str, tmp_path: Path, backend: str) -> None:
    oracle = transformers.LlamaForCausalLM.from_pretrained(folder)
    paths = {str(seed): str(adapt(oracle, tmp_path / str(seed), seed=seed).path) for seed in (1, 2)}
    names, found = ["1", None, "2", "1"], {}
    for name in ("none", "ngram"):
        options = SETTINGS | {"speculation": name, "backend": backend, "loras": paths}
        with headstock.Engine(model=folder, **options) as engine:
            ask = {"prompt": TEXTS, "sampling_params": [CHANT] * 4, "lora_name": names}
            found[name] = engine.generate(**ask)
    for mine, theirs in zip(found["ngram"], found["none"], strict=True):
        assert mine["output_ids"] == theirs["output_ids"]
    assert min(accepted(found["ngram"][row]) for row in (0, 2)) > 0


def test_ids_that_are_allowed_or_not_are_masks_too(folder: str) -> None:
    body = {"prompt": TEXTS[0], "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    asks = [{"allowed_token_ids": [97, 98, 99]}, {"bad_words": ["^", "_"]}, {}]
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("none", "ngram"):
        flags = ["--dtype", "float32", "--cache-tokens", "2048", "--speculation", name]
        with served(folder, *flags) as server:
            found[name] = [
                server.post("/v1/completions", **body, **ask, logit_bias=CHANT["logit_bias"]).json()
                for ask in asks
            ]
    texts = {name: [row["choices"][0]["text"] for row in rows] for name, rows in found.items()}
    assert texts["ngram"] == texts["none"]
    assert set(texts["ngram"][0]) <= set("^_`")
    assert not set(texts["ngram"][1]) & set("^_")
    details = [row["usage"].get("completion_tokens_details") for row in found["ngram"]]
    assert details[:2] == [None, None]
    assert details[2]["accepted_prediction_tokens"] > 0


def test_a_stop_string_amid_accepted_drafts_ends_the_text_there(folder: str) -> None:
    with headstock.Engine(model=folder, **SETTINGS) as engine:
        plain = engine.generate(prompt=TEXTS[0], sampling_params=FREE | {"max_new_tokens": 80})
    text = plain["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    with headstock.Engine(model=folder, speculation="ngram", **SETTINGS) as engine:
        params = FREE | {"max_new_tokens": 80, "stop": [stop]}
        found = engine.generate(prompt=TEXTS[0], sampling_params=params)
    assert found["text"] == text[: text.index(stop)]
    assert found["meta_info"]["finish_reason"]["matched"] == stop


def test_a_stream_goes_on_with_its_drafts_when_the_engine_dies(folder: str) -> None:
    flags = ["--dtype", "float32", "--cache-tokens", "2048", "--speculation", "ngram"]
    params = CHANT | {"max_new_tokens": 200}
    with served(folder, *flags) as server:
        whole = server.post("/generate", text=TEXTS[0], sampling_params=params).json()
        body = {"text": TEXTS[0], "sampling_params": params, "stream": True}
        pid, last = server.engine_pid, ""
        with httpx.stream("POST", server.url + "/generate", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    last = line.removeprefix("data: ")
                    if pid:
                        os.kill(pid, signal.SIGKILL)
                        pid = 0
    assert json.loads(last)["output_ids"] == whole["output_ids"]
    assert accepted(whole) > 0


def test_the_default_model_copies_what_it_would_have_written(model: str) -> None:
    code = "def area(width, height):\n    return width * height\n" * 2
    prompt = f"<|im_start|>user\nRepeat this code:\n{code}<|im_end|>\n<|im_start|>assistant\n"
    found = {}
    for name in ("none", "ngram"):
        options = {"speculation": name, "cache_tokens": 2048, "max_model_len": 1024}
        with headstock.Engine(model=model, **options) as engine:
            params = {"temperature": 0, "max_new_tokens": 64}
            found[name] = engine.generate(prompt=prompt, sampling_params=params)
    assert found["ngram"]["output_ids"] == found["none"]["output_ids"]
    assert accepted(found["ngram"]) > 0
