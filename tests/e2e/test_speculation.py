"""Drafting end to end on small models: the ids of a server without it, in batches of all kinds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import headstock
from headstock.errors import ConfigError
from tests.e2e.served import served
from tests.models.conftest import FAMILIES, SIZES

SETTINGS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "dtype": "float32",
    "cache_tokens": 1024,
    "max_running_requests": 6,
}
AGAIN = [*range(3, 27), 40, 41, *range(3, 15)]
PROMPTS = [
    AGAIN,
    [*AGAIN, 50, 51],
    [7, 7, 7, 7],
    [9],
    [*range(60, 20, -1), *range(60, 40, -1)],
    [3, 4] * 30,
]
GREEDY = {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}


def sampled(seed: int, **more: Any) -> dict[str, Any]:
    return {"temperature": 0.3, "top_k": 8, "sampling_seed": seed, "max_new_tokens": 30} | more


def save(family: str, folder: Path) -> str:
    """Save a small model of random weights, which soon repeats itself."""
    config_type, model_type, given = FAMILIES[family]
    torch.manual_seed(1)
    config = config_type(**SIZES | given | {"vocab_size": 64, "eos_token_id": 2})
    model_type(config).eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save("llama", tmp_path_factory.mktemp("llama"))


def drafts_of(results: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many drafts were verified, and how many were right."""
    metas = [result["meta_info"] for result in results]
    drafted = sum(meta.get("spec_draft_token_num", 0) for meta in metas)
    return drafted, sum(meta.get("spec_accept_token_num", 0) for meta in metas)


def served_ids(
    folder: str, params: Any, *, speculation: str = "ngram", **settings: Any
) -> tuple[list[list[int]], tuple[int, int]]:
    """Return the ids that all prompts get, together and once more on their cached prefixes."""
    options = SETTINGS | settings
    with headstock.Engine(model=folder, speculation=speculation, **options) as engine:
        together = engine.generate(input_ids=PROMPTS, sampling_params=params)
        again = engine.generate(input_ids=PROMPTS[:2], sampling_params=params[:2])
    results = together + again
    return [result["output_ids"] for result in results], drafts_of(results)


SETS = {
    "greedy": [GREEDY] * 6,
    "sampled": [sampled(seed) for seed in range(6)],
    "mixed": [
        GREEDY,
        sampled(5, stop_token_ids=[11, 12, 13], ignore_eos=True),
        GREEDY | {"repetition_penalty": 1.2},
        GREEDY | {"logit_bias": {"9": 2.0}, "min_new_tokens": 5, "ignore_eos": False},
        GREEDY | {"max_new_tokens": 7},
        sampled(9, frequency_penalty=0.5),
    ],
}


Plain = Callable[[str, str], list[list[int]]]


@pytest.fixture(scope="module")
def plain(llama: str) -> Plain:
    """Return what gives the ids that a set gets of a backend without drafting, served once."""

    @functools.cache
    def find(which: str, backend: str) -> list[list[int]]:
        ids, drafted = served_ids(llama, SETS[which], backend=backend, speculation="none")
        assert drafted == (0, 0)
        return ids

    return find


@pytest.mark.parametrize("backend", ["reference", "xeon"])
@pytest.mark.parametrize("which", SETS)
def test_no_id_changes(llama: str, plain: Plain, backend: str, which: str) -> None:
    found, (drafted, accepted) = served_ids(llama, SETS[which], backend=backend, num_drafts=3)
    assert found == plain(which, backend)
    assert 0 < accepted <= drafted


@pytest.mark.parametrize(
    "settings",
    [
        {"overlap": True},
        {"overlap": True, "chunked_prefill_size": 13},
        {"cache_tokens": 256, "max_model_len": 128},
        {"num_drafts": 15, "page_size": 1},
    ],
    ids=["overlapped", "chunks", "retraction", "many-on-small-pages"],
)
def test_no_id_changes_with(llama: str, plain: Plain, settings: dict[str, Any]) -> None:
    found, (_, accepted) = served_ids(llama, SETS["mixed"], backend="reference", **settings)
    assert found == plain("mixed", "reference")
    assert accepted > 0


@pytest.mark.parametrize("family", ["gemma3", "gpt_oss", "deepseek_v3"])
def test_no_id_changes_with_windows_and_latents(family: str, tmp_path: Path) -> None:
    folder = save(family, tmp_path)
    wanted, _ = served_ids(folder, SETS["greedy"], speculation="none")
    found, (drafted, _) = served_ids(folder, SETS["greedy"], num_drafts=3)
    assert found == wanted
    assert drafted > 0  # what is right of them depends on the random weights, and on the time


def test_a_model_with_states_is_refused_at_the_start(tmp_path: Path) -> None:
    folder = save("qwen3_next", tmp_path)
    with pytest.raises(ConfigError, match="speculation is on and the model has recurrent state"):
        headstock.Engine(model=folder, speculation="ngram", **SETTINGS)


LOGPROB_COLUMNS = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("which", SETS)
def test_every_accepted_draft_has_the_logprobs_of_a_plain_step(
    llama: str, which: str, overlap: bool
) -> None:
    asks = {
        "sampling_params": SETS[which],
        "return_logprob": [False, True, True] * 2,
        "top_logprobs_num": [0, 2, 5, 0, 0, 3],
        "token_ids_logprob": [[], [], [3, 9], [], [5], []],
        "logprob_start_len": [-1, -1, 2, -1, -1, 0],
    }
    answers: list[list[dict[str, Any]]] = []
    for speculation in ("none", "ngram"):
        options = SETTINGS | {"speculation": speculation, "overlap": overlap}
        with headstock.Engine(model=llama, **options) as engine:
            answers.append(engine.generate(input_ids=PROMPTS, **asks))
    plain, drafted = answers
    if which != "mixed":  # there, what is right of the scored rows' drafts depends on the time
        assert drafts_of([drafted[row] for row in (1, 2, 4, 5)])[1] > 0
    for mine, theirs in zip(drafted, plain, strict=True):
        assert mine["output_ids"] == theirs["output_ids"]
        for name in ("input_token_logprobs", *LOGPROB_COLUMNS):
            compare_logprobs(mine["meta_info"].get(name), theirs["meta_info"].get(name))


def compare_logprobs(mine: Any, theirs: Any) -> None:
    """Compare (logprob, id, text) triples, alone or in lists; None where nothing was asked."""
    if theirs is None or isinstance(theirs, (int, str)):
        assert mine == theirs
    elif isinstance(theirs, float):
        assert mine == pytest.approx(theirs, abs=1e-4)
    else:
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            compare_logprobs(one, other)


@pytest.mark.slow
def test_two_ranks_draft_alike(llama: str) -> None:
    wanted, _ = served_ids(llama, SETS["mixed"], speculation="none")
    flags = ["--skip-tokenizer-init", "--dtype", "float32", "--cache-tokens", "1024"]
    flags += ["--speculation", "ngram", "--num-drafts", "3", "--tp-size", "2"]
    with served(llama, *flags) as server:
        answer = server.post("/generate", input_ids=PROMPTS, sampling_params=SETS["mixed"]).json()
        assert [result["output_ids"] for result in answer] == wanted[:6]
        assert drafts_of(answer)[1] > 0
        metrics = server.get("/metrics").text
        assert "headstock_accepted_tokens_total" in metrics
