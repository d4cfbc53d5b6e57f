"""Models that cache latents or states, served whole: ids as transformers draws them, hits too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import headstock
from tests.models.cases import CASES
from tests.models.conftest import FAMILIES, SIZES, randomize

NEW_TOKENS = 10
PROMPTS = [
    list(range(3, 60)),
    list(range(3, 60)),
    [*range(3, 50), *range(80, 90)],
    [9],
    list(range(100, 20, -1)),
]


OTHERS = ["lfm2", "bamba", "falconh1", "gpt2", "mimov2flash", "step3p7", "jamba"]
"""Families of tests/models/cases.py: states of other kinds, learned places, heads that differ."""
NATIVE = ["deepseek_v3", "qwen3_next", "qwen3_5", "gemma3", "gpt_oss"]


def _marks(name: str, backend: str) -> tuple[pytest.MarkDecorator, ...]:
    is_left = name in OTHERS and backend == "reference"
    return (pytest.mark.slow,) if is_left else ()


TRIED = [
    pytest.param(name, backend, marks=_marks(name, backend))
    for name in (*NATIVE, *OTHERS)
    for backend in ("reference", "xeon")
]
"""All of them on the CPU's own kernels; the long run has the other families on references, too."""


@pytest.fixture(scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Return a model's folder and the ids that transformers draws for each prompt."""
    config_type, model_type, given = FAMILIES.get(request.param) or _family(request.param)
    torch.manual_seed(0)
    oracle = model_type(config_type(**SIZES | given | {"eos_token_id": None})).eval()
    randomize(oracle)
    folder = tmp_path_factory.mktemp(request.param)
    oracle.save_pretrained(folder)
    return folder, [greedy(oracle, ids) for ids in PROMPTS]


def _family(name: str) -> tuple[Any, Any, Mapping[str, Any]]:
    (case,) = [case for case in CASES if case.name == name]
    return case.config, case.oracle, case.options


def greedy(oracle: transformers.PreTrainedModel, ids: list[int]) -> list[int]:
    drawn: list[int] = []
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = oracle(torch.tensor([[*ids, *drawn]])).logits
        drawn.append(int(logits[0, -1].argmax()))
    return drawn


@pytest.mark.parametrize(("saved", "backend"), TRIED, indirect=["saved"])
def test_ids_are_those_of_transformers_cold_in_chunks_together_and_on_a_hit(
    saved: tuple[Path, list[list[int]]], backend: str
) -> None:
    folder, wanted = saved
    params = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    with headstock.Engine(
        model=str(folder),
        backend=backend,
        dtype="float32",
        cache_tokens=1024,
        skip_tokenizer_init=True,
        chunked_prefill_size=24,
    ) as engine:
        alone = engine.generate(input_ids=PROMPTS[0], sampling_params=params)
        together = engine.generate(input_ids=PROMPTS, sampling_params=params)
    assert alone["output_ids"] == wanted[0]
    assert [result["output_ids"] for result in together] == wanted
    assert together[0]["meta_info"]["cached_tokens"] >= 32


def test_a_model_with_states_alone_has_hits_too(tmp_path: Path) -> None:
    (case,) = [case for case in CASES if case.name == "mamba2"]
    saved = case.save(tmp_path)
    prompt, params = list(range(1, 120)), {"temperature": 0, "max_new_tokens": 5}
    longer = [*prompt, 3, 1, 4]
    with headstock.Engine(
        model=str(tmp_path),
        backend="reference",
        dtype="float32",
        cache_tokens=2048,
        skip_tokenizer_init=True,
    ) as engine:
        engine.generate(input_ids=prompt, sampling_params=params)
        again = engine.generate(input_ids=longer, sampling_params={**params, "ignore_eos": True})
    assert again["output_ids"] == greedy(saved.oracle, longer)[:5]
    assert again["meta_info"]["cached_tokens"] >= 64
