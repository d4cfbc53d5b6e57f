"""The cases of DeepSeek V4: windows, entries of either kind, streams, and experts by a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers

from headstock.testing.oracle.case import ModelCase
from tests.models.case_parts import add, family, in_turn, rename, rewrite

SLIDING = "sliding_attention"
CHOSEN = "compressed_sparse_attention"
HEAVY = "heavily_compressed_attention"
SIZES: Mapping[str, Any] = {
    "hidden_size": 64,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 24,
    "partial_rotary_factor": 1 / 3,
    "q_lora_rank": 40,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "o_groups": 2,
    "o_lora_rank": 12,
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 3,
    "sliding_window": 9,
    "layer_types": [SLIDING, CHOSEN, HEAVY, CHOSEN],
    "compress_rates": {CHOSEN: 4, HEAVY: 8},
    "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    "initializer_range": 0.2,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def made(config: Any) -> Any:
    """Return the oracle with tables and weights of streams that matter; they start alike."""
    model = transformers.DeepseekV4ForCausalLM(config)
    count = config.n_routed_experts
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("tid2eid"):
            value.copy_(torch.rand(len(value), count).argsort(dim=1)[:, : value.shape[1]])
        elif name.endswith(("hc.base", "hc_base")):
            torch.nn.init.normal_(value.data)
        elif name.endswith(("hc.scale", "hc_scale")):
            torch.nn.init.uniform_(value.data, 0.5, 1.5)
    return model


def _case(variants: Mapping[str, Mapping[str, Any]] | None = None, **given: Any) -> ModelCase:
    return replace(family("DeepseekV4", {}, variants, sizes=SIZES, **given), oracle=made)


DEEPSEEK_V4 = [
    _case(
        {
            "usual-layers": {"layer_types": None, "num_hidden_layers": 5, "mlp_layer_types": None},
            "several-entries-a-page": {"compress_rates": {CHOSEN: 2, HEAVY: 4}},
            "one-chosen": {"index_topk": 1},
            "all-chosen": {"index_topk": 512},
            "yarn": {"rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 500.0}},
            "whole-window": {"sliding_window": 128, "tie_word_embeddings": True},
            "two-streams": {"hc_mult": 2, "hc_sinkhorn_iters": 1, "hc_eps": 1e-3},
            "tables-alone": {"mlp_layer_types": ["hash_moe"] * 4},
            "low-limit": {"swiglu_limit": 0.5, "routed_scaling_factor": 2.5},
        },
        refused={
            "hidden_act": "gelu",
            "scoring_func": "sigmoid",
            "norm_topk_prob": False,
            "n_shared_experts": 2,
            "num_key_value_heads": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "layer_types": [SLIDING, "full_attention", HEAVY, CHOSEN],
            "mlp_layer_types": ["dense", "moe", "moe", "moe"],
        },
    )
]
DEEPSEEK_V4_HUB = [
    replace(
        _case(name="deepseekv4-hub"),
        options={"rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 500.0}},
        edit=in_turn(
            rename(r"^model\.embed_tokens", "embed"),
            rename(r"^model\.hc_head\.hc_", "hc_head_"),
            rename(r"^model\.", ""),
            add("mtp.0.enorm.weight", torch.ones(64)),
            rewrite(
                layer_types=None,
                compress_ratios=[0, 4, 128, 4, 0],
                compress_rates=None,
                compress_rate_hca=8,
                mlp_layer_types=None,
                num_hash_layers=1,
                partial_rotary_factor=None,
                qk_rope_head_dim=8,
                rope_parameters=None,
                rope_scaling=YARN,
                rope_theta=10000.0,
            ),
        ),
        refused={"compress_ratios": [0, 4, 16, 4]},
    )
]
