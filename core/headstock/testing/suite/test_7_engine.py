"""The backend serves: small random models give the tokens that the reference backend gives.

Greedy and in float32, so that there is one right answer: the reference backend's, one request at
a time, whole prompts, nothing cached, nothing captured.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from headstock.assemble.local import run_greedy
from headstock.ops.base import REFERENCE
from headstock.testing.target import Target

NUM_TOKENS = 16
VOCAB_SIZE = 307
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,  # tied, random weights repeat the last token whatever is cached
    "torch_dtype": "float32",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SMALL | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "qwen3": SMALL | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32},
}

Ids = list[list[int]]
Prompts = Mapping[str, Ids]


def _ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCAB_SIZE) for _ in range(count)]


def _prompts() -> Prompts:
    rng = random.Random(0)
    prefix = _ids(rng, 80)
    return {
        "mixed": [_ids(rng, count) for count in (1, 15, 16, 17, 70)],
        "shared": [prefix + _ids(rng, count) for count in (1, 5, 9)] + [prefix[:48]],
        "many": [_ids(rng, 1 + 3 * count) for count in range(12)],
    }


PROMPTS = _prompts()


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def right(config: dict[str, Any], target: Target) -> dict[str, Ids]:
    """Return the tokens that every prompt must get."""
    del target  # skip first where the backend cannot run
    alone: dict[str, Any] = {"max_running_requests": 1, "prefix_cache": False, "graphs": False}
    alone |= {"op": ["all=reference"]}  # plugins offer theirs on any backend, the reference's too
    everything = [prompt for prompts in PROMPTS.values() for prompt in prompts]
    answers = iter(_run(config, None, everything, **alone))
    return {name: [next(answers) for _ in prompts] for name, prompts in PROMPTS.items()}


def test_requests_served_together_get_the_tokens_of_each_alone(
    target: Target, config: dict[str, Any], right: dict[str, Ids]
) -> None:
    _check(target, config, right, "mixed")


def test_prompts_computed_in_chunks_get_the_same_tokens(
    target: Target, config: dict[str, Any], right: dict[str, Ids]
) -> None:
    _check(target, config, right, "mixed", chunked_prefill_size=19)


def test_requests_that_share_a_prefix_get_the_same_tokens(
    target: Target, config: dict[str, Any], right: dict[str, Ids]
) -> None:
    _check(target, config, right, "shared")


def test_more_requests_than_run_at_once_get_the_same_tokens(
    target: Target, config: dict[str, Any], right: dict[str, Ids]
) -> None:
    _check(target, config, right, "many", max_running_requests=5)


def test_requests_that_are_retracted_get_the_same_tokens(
    target: Target, config: dict[str, Any], right: dict[str, Ids]
) -> None:
    _check(target, config, right, "many", cache_tokens=240, max_model_len=128)


def test_steps_run_without_graphs_give_the_same_tokens(
    target: Target, config: dict[str, Any], right: dict[str, Ids]
) -> None:
    _check(target, config, right, "mixed", graphs=False)


def test_steps_run_one_at_a_time_give_the_same_tokens(
    target: Target, config: dict[str, Any], right: dict[str, Ids]
) -> None:
    _check(target, config, right, "mixed", overlap=False)


def test_its_device_serves_with_reference_ops_alone(
    target: Target, config: dict[str, Any], right: dict[str, Ids]
) -> None:
    _check(target, config, right, "mixed", op=["all=reference"])


def test_quantised_weights_give_a_token_for_every_place(
    target: Target, config: dict[str, Any]
) -> None:
    """Rounding differs from backend to backend, so the tokens may too."""
    for quantization in ("int8", "int4"):
        answers = _run(config, target, PROMPTS["mixed"], quantization=quantization)
        assert [len(ids) for ids in answers] == [NUM_TOKENS] * len(PROMPTS["mixed"])


def _check(
    target: Target, config: dict[str, Any], right: dict[str, Ids], name: str, **settings: Any
) -> None:
    answers = _run(config, target, PROMPTS[name], **settings)
    for index, (got, wanted) in enumerate(zip(answers, right[name], strict=True)):
        if got != wanted:
            place = next(
                i for i, pair in enumerate(zip(got, wanted, strict=False)) if len({*pair}) > 1
            )
            size = len(PROMPTS[name][index])
            pytest.fail(
                f"prompt {index} of {size} tokens: output {place} is {got[place]}, the reference"
                f" backend's is {wanted[place]}\n got    {got}\n wanted {wanted}",
                pytrace=False,
            )


def _run(config: dict[str, Any], target: Target | None, prompts: Ids, **settings: Any) -> Ids:
    """Return the answers of ``target``; None: of the reference backend."""
    fixed: dict[str, Any] = {"backend": REFERENCE, "dtype": "float32"}
    if target is not None:
        fixed |= {"backend": target.chosen.name, "backend_option": list(target.options)}
    fixed |= {"cache_tokens": 2048, "max_running_requests": 16}
    return run_greedy(config, prompts, NUM_TOKENS, **(fixed | settings))
