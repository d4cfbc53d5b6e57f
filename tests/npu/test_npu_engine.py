"""The engine on the ascend backend: ids are those of the reference backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headstock.assemble.local import run_greedy
from headstock.testing.suite.test_7_engine import CONFIGS, SMALL

MOE = SMALL | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
WINDOWS = SMALL | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "use_sliding_window": True,
    "sliding_window": 24,
    "max_window_layers": 1,
    "layer_types": ["full_attention", "sliding_attention"],
}
SEEN = WINDOWS | {"head_dim": 64, "hidden_size": 128, "num_attention_heads": 2}
SINKS = SMALL | {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "head_dim": 64,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
LATENTS = SMALL | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rope_interleave": True,
}
Agree = Callable[..., None]


def test_drafts_change_no_id(agree: Agree, prompts: list[list[int]]) -> None:
    """Their steps have several queries a row, and lengths that the host knows once they settle."""
    agree(CONFIGS["llama"], prompts, 24, speculation="ngram", num_drafts=3)


def test_experts_are_chosen_and_computed(agree: Agree, prompts: list[list[int]]) -> None:
    agree(MOE, prompts)


def test_layers_with_windows_are_left_to_the_reference(
    agree: Agree, prompts: list[list[int]]
) -> None:
    agree(WINDOWS, prompts)


@pytest.mark.parametrize(
    ("config", "op"),
    [(SEEN, "attention"), (SINKS, "attention"), (LATENTS, "latent_attention")],
    ids=["windows", "windows and sinks", "latents"],
)
def test_what_the_second_form_of_the_kernel_attends_to(
    agree: Agree, prompts: list[list[int]], config: dict[str, Any], op: str
) -> None:
    agree(config, prompts, 12, chunked_prefill_size=64, op=[f"{op}=cann"])


def test_pages_in_int8_are_attended_to_by_the_kernel(agree: Agree) -> None:
    """Prompts over several chunks and pages, a prefix from the cache, drafts, and one at a time."""
    long = CONFIGS["qwen3"] | {"max_position_embeddings": 512}
    prompts = [[3 + place % 251 for place in range(300)], [5], [7, 8, 9] * 12]
    eight = {"kv_dtype": "int8", "chunked_prefill_size": 90}
    agree(long, prompts, 12, op=["attention=cann"], **eight)
    agree(long, prompts, 12, op=["attention=cann"], speculation="ngram", num_drafts=3, **eight)


def test_several_pages_a_request(agree: Agree) -> None:
    long = CONFIGS["qwen3"] | {"max_position_embeddings": 512}
    agree(long, [[3 + place % 251 for place in range(300)], [5]], 12, chunked_prefill_size=90)


def test_two_ranks_give_the_same_ids(
    agree: Agree, prompts: list[list[int]], search_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", search_path)
    agree(CONFIGS["llama"], prompts, tp_size=2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_models_in_the_dtypes_of_an_npu_run(npu: object, dtype: str) -> None:
    """Rounding differs, so the ids may: what is refused is refused here."""
    settings: dict[str, Any] = {"backend": "npu", "dtype": dtype, "cache_tokens": 1024}
    for quantization in ("none", "int8", "int4"):
        for config in (CONFIGS["qwen3"], MOE):
            ids = run_greedy(
                config, [[3, 4, 5], [9] * 20], 4, quantization=quantization, **settings
            )
            assert [len(each) for each in ids] == [4, 4]
