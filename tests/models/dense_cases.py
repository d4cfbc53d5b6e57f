"""The cases of decoders whose layers are all dense."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import transformers

from tests.models.case_options import BOTH, FULL, PLAIN_ROPE, SLIDING, TIED, UNTIED, YARN
from tests.models.case_parts import family, longrope

DENSE = [
    family(
        "Qwen2",
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 7},
        {"no-window": {"use_sliding_window": False}, "tied": TIED},
        refused={"hidden_act": "gelu", "partial_rotary_factor": 0.5},
    ),
    family(
        "Mistral",
        {"sliding_window": 7, "head_dim": 24},
        {"no-window": {"sliding_window": None}},
        name="mistral-window",
    ),
    family("Mixtral", {"sliding_window": 7, "num_local_experts": 5}, name="mixtral-window"),
    family(
        "Ministral3",
        {
            "head_dim": 24,
            "rope_parameters": {
                **YARN,
                "rope_theta": 1000.0,
                "llama_4_scaling_beta": 0.5,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
    ),
    family(
        "Phi3",
        {"pad_token_id": 0},
        {
            "partial": {"rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 100.0}},
            "window": {"sliding_window": 7},
            "one-kv-head": {"num_key_value_heads": 1},
            "longrope": longrope(8),
            "longrope-short": longrope(128),
        },
        refused={"attention_bias": True},
    ),
    family(
        "SmolLM3",
        {"num_hidden_layers": 4, "pad_token_id": 0},
        {
            "windows": {"use_sliding_window": True, "sliding_window": 7},
            "untied": {"no_rope_layers": [0, 1, 1, 0], **UNTIED},
            "biases": {"attention_bias": True, "mlp_bias": True},
        },
    ),
    family("Glm", {"head_dim": 16, "pad_token_id": 0}),
    family("Glm4", {"head_dim": 16, "pad_token_id": 0}, {"biases": {"attention_bias": True}}),
    family(
        "Granite",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
        {"tied": TIED, "plain-residual": {"residual_multiplier": 1.0}},
    ),
    family("Olmo2", {"pad_token_id": 0}, {"one-kv-head": {"num_key_value_heads": 1}}),
    family(
        "Olmo3",
        BOTH
        | {
            "pad_token_id": 0,
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 500.0},
                FULL: {**YARN, "rope_theta": 500.0},
            },
        },
        {"usual-layers": {"layer_types": None, "num_hidden_layers": 4, "sliding_window": 5}},
    ),
    family("Cohere", {"logit_scale": 0.25, "pad_token_id": 0}, refused={"use_qk_norm": True}),
    family(
        "Cohere2",
        BOTH | {"logit_scale": 0.25, "pad_token_id": 0},
        {"usual-layers": {"layer_types": None, "num_hidden_layers": 4}, "untied": UNTIED},
    ),
    family(
        "Exaone4",
        BOTH,
        {
            "no-window": {"sliding_window": None, "layer_types": [FULL] * 3},
            "usual-layers": {"layer_types": None, "num_hidden_layers": 4},
        },
    ),
    family("SeedOss", {"head_dim": 24}, {"out-bias": {"attention_out_bias": True}}),
    family("Ernie4_5", {}, {"biases": {"use_bias": True}, "untied": UNTIED}),
    family(
        "Starcoder2",
        {"sliding_window": 7},
        {"no-window": {"sliding_window": None}, "no-biases": {"use_bias": False}},
        refused={"norm_type": "rms_norm"},
    ),
]
GPT2 = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "vocab_size": 128,
    "initializer_range": 0.2,
}
DENSE += [
    family(
        "GPT2",
        {},
        {
            "inner": {"n_inner": 96, "activation_function": "gelu", **UNTIED},
            "scales": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
            "unscaled": {"scale_attn_weights": False},
        },
        oracle="GPT2LMHeadModel",
        sizes=GPT2,
        refused={"add_cross_attention": True, "activation_function": "quick_gelu"},
    ),
    family(
        "GPTBigCode",
        {},
        {
            "own-heads": {"multi_query": False, "n_inner": 96},
            "untied": {"scale_attn_weights": False, **UNTIED},
        },
        sizes=GPT2,
    ),
]


def _apertus(config: Any) -> Any:
    """Return a model whose layers have each its own activation, as learned ones have."""
    model = transformers.ApertusForCausalLM(config)
    for number, layer in enumerate(model.model.layers):
        layer.mlp.act_fn.alpha_p.data.fill_(0.3 + number)
        layer.mlp.act_fn.alpha_n.data.fill_(-0.5 * number)
    return model


APERTUS = family(
    "Apertus",
    {"pad_token_id": 0},
    {"biases": {"attention_bias": True, **TIED}, "plain-angles": PLAIN_ROPE},
    refused={"hidden_act": "silu", "sliding_window": 8},
)
DENSE += [replace(APERTUS, oracle=_apertus)]
