"""The workloads that engines are compared on, and models without weights to run them.

The same definitions as the peers' figures in the documentation were measured with: uniform random
ids in [1000, 30000), another draw each run, all requests handed over at once, greedy, no EOS.
"""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
MODELS = {
    "qwen3-0.6b": QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": QWEN3
    | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "gpt-oss-20b": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "attention_bias": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "eos_token_id": 200002,
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
    },
    "qwen3-tiny": QWEN3
    | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
}
MAX_LENGTH = 17408


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests handed over at once.

    Attributes:
        label: The workload's id in every results file.
        prompts: Token ids of each.
        num_outputs: Tokens that each generates.
    """

    label: str
    prompts: list[list[int]]
    num_outputs: int


def write_model(name: str) -> Path:
    """Write the configuration of a model without weights and return its folder."""
    folder = Path(tempfile.gettempdir()) / "headstock-bench-models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[name], indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


def batches(workload: str, run: int) -> list[Batch]:
    """Return the batches of one run of ``workload``, sent one after another.

    Args:
        workload: ``decode1``, ``bs64``, ``bs256``, ``prefix``, ``long`` or ``smoke``.
        run: Which draw of the prompts.
    """
    draw = random.Random(f"{workload}-{run}")

    def prompt(length: int) -> list[int]:
        return [draw.randrange(1000, 30000) for _ in range(length)]

    if workload == "decode1":
        return [Batch("decode1_128in_256out", [prompt(128)], 256)]
    if workload == "bs256":
        return [Batch("bs256_1024in_256out", [prompt(1024) for _ in range(256)], 256)]
    if workload == "bs64":
        return [Batch("bs64_1024in_256out", [prompt(1024) for _ in range(64)], 256)]
    if workload == "long":
        return [Batch("long_8x16384in_16out", [prompt(16384) for _ in range(8)], 16)]
    if workload == "smoke":
        return [Batch("smoke_4x64in_8out", [prompt(64) for _ in range(4)], 8)]
    if workload == "prefix":
        prefixes = [prompt(2048) for _ in range(32)]

        def shuffled() -> list[list[int]]:
            prompts = [prefix + prompt(64) for prefix in prefixes for _ in range(16)]
            draw.shuffle(prompts)
            return prompts

        return [
            Batch("prefix_cold_32x2048+512x64in_64out", shuffled(), 64),
            Batch("prefix_warm_32x2048+512x64in_64out", shuffled(), 64),
        ]
    raise SystemExit(f"Unknown workload {workload!r}: decode1, bs64, bs256, prefix, long or smoke.")
