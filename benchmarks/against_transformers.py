"""Decode throughput beside transformers' own, on one CPU: 16 streams, the same weights and dtype.

    python benchmarks/against_transformers.py [--shapes qwen3 gemma3] [--out results.jsonl]

For each shape a small model of random weights is saved once. transformers generates one prompt
after another, as a program that calls `generate` for each request does, and with a static batch of
them all, which takes prompts of one length that are there at once; the engine gets the same prompts
as 16 requests. All run in turn, on all cores that this
process may use; medians of --runs after one warm-up run. The greedy ids of both are compared: the
share that is equal up to the first difference of each request, which should be 1 in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import headstock

STREAMS = 16
SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 32_000,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 4, "moe_intermediate_size": 256}
SHAPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 64}),
    "gemma3": (
        transformers.Gemma3TextConfig,
        transformers.Gemma3ForCausalLM,
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 64,
            "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 2,
        },
    ),
    "gpt_oss": (
        transformers.GptOssConfig,
        transformers.GptOssForCausalLM,
        {
            "head_dim": 64,
            "sliding_window": 64,
            "num_local_experts": 16,
            "num_experts_per_tok": 4,
            "intermediate_size": 256,
        },
    ),
    "deepseek_v3": (
        transformers.DeepseekV3Config,
        transformers.DeepseekV3ForCausalLM,
        EXPERTS
        | {
            "num_key_value_heads": 8,
            "q_lora_rank": 256,
            "kv_lora_rank": 128,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
            "n_routed_experts": 16,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
        },
    ),
    "qwen3_next": (
        transformers.Qwen3NextConfig,
        transformers.Qwen3NextForCausalLM,
        EXPERTS
        | {
            "head_dim": 64,
            "layer_types": [*["linear_attention"] * 3, "full_attention"] * 2,
            "linear_num_key_heads": 8,
            "linear_num_value_heads": 8,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
            "num_experts": 16,
            "shared_expert_intermediate_size": 256,
        },
    ),
}
Ids = list[list[int]]


def save(shape: str, folder: Path, dtype: torch.dtype) -> Any:
    """Save a model of random weights; return transformers' own, in ``dtype``."""
    config_type, model_type, given = SHAPES[shape]
    torch.manual_seed(0)
    model = model_type(config_type(**SIZES | given)).eval().to(dtype)
    model.save_pretrained(folder)
    return model


def draw_prompts(length: int) -> Ids:
    """Return prompts of one length, with no prefix in common."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 32_000, (STREAMS, length), generator=generator).tolist()


def of_transformers(
    model: Any, prompts: Ids, num_outputs: int, *, at_once: int
) -> Callable[[], Ids]:
    """Return what generates with static batches of ``at_once`` prompts, one after another."""
    batches = torch.tensor(prompts).split(at_once)
    fixed = {"max_new_tokens": num_outputs, "min_new_tokens": num_outputs, "do_sample": False}

    @torch.inference_mode()
    def run() -> Ids:
        found: Ids = []
        for input_ids in batches:
            attention_mask = torch.ones_like(input_ids)
            ids = model.generate(input_ids=input_ids, attention_mask=attention_mask, **fixed)
            found += ids[:, input_ids.shape[1] :].tolist()
        return found

    return run


def of_headstock(engine: headstock.Engine, prompts: Ids, num_outputs: int) -> Callable[[], Ids]:
    """Return what generates with the engine."""
    params = {"temperature": 0.0, "max_new_tokens": num_outputs, "min_new_tokens": num_outputs}

    def run() -> Ids:
        results = engine.generate(input_ids=prompts, sampling_params=params)
        return [result["output_ids"] for result in results]

    return run


def equal_share(mine: Ids, theirs: Ids) -> float:
    """Return the share of ids that are equal, up to the first difference of each request."""
    equal = 0
    for one, other in zip(mine, theirs, strict=True):
        assert len(one) == len(other), f"{len(one)} ids, not {len(other)}"
        differ = (at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        equal += next(differ, len(one))
    return equal / sum(map(len, theirs))


def in_turn(runs: dict[str, Callable[[], Ids]], count: int) -> tuple[dict[str, float], float]:
    """Return the median seconds of each, and the share of the first two's ids that are equal."""
    first, second, *_ = (run() for run in runs.values())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {n: statistics.median(taken) for n, taken in seconds.items()}, equal_share(first, second)


def compare(shape: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the tokens per second of both, and how often the engine's are transformers'."""
    prompts = draw_prompts(options.prompt_tokens)
    length = options.prompt_tokens + options.output_tokens + 1
    settings: dict[str, Any] = {
        "dtype": dtype,
        "backend": options.backend,
        "skip_tokenizer_init": True,
        "max_model_len": length,
        "cache_tokens": 2 * STREAMS * length,
        "max_running_requests": STREAMS,
        "prefix_cache": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        model = save(shape, Path(folder), getattr(torch, dtype))
        with headstock.Engine(model=folder, **settings) as engine:
            runs = {
                "headstock": of_headstock(engine, prompts, options.output_tokens),
                "batch": of_transformers(model, prompts, options.output_tokens, at_once=STREAMS),
                "one_by_one": of_transformers(model, prompts, options.output_tokens, at_once=1),
            }
            seconds, share = in_turn(runs, options.runs)
    tokens = STREAMS * options.output_tokens
    return {
        "shape": shape,
        "dtype": dtype,
        "streams": STREAMS,
        "prompt_tokens": options.prompt_tokens,
        "output_tokens": options.output_tokens,
        **{f"{name}_tok_s": round(tokens / taken, 1) for name, taken in seconds.items()},
        "ratio_to_batch": round(seconds["batch"] / seconds["headstock"], 2),
        "ratio_to_one_by_one": round(seconds["one_by_one"] / seconds["headstock"], 2),
        "equal_ids": round(share, 4),
        "threads": torch.get_num_threads(),
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--backend", default=None)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the lines to this file")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.set_verbosity_error()
    for shape in options.shapes:
        for dtype in options.dtypes:
            line = json.dumps(compare(shape, dtype, options))
            print(line, flush=True)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
