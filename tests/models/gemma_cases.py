"""Cases of Gemma 4 and Gemma 3n: layers that keep no keys and values, embeddings for layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import transformers

from headstock.testing.oracle.case import ModelCase
from tests.models.case_parts import add, family, in_turn, rewrite

SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA4 = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 7,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 3.0,
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        FULL: {"rope_type": "proportional", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
    },
}
SMALL = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
}
LARGE = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
KEYS_AS_VALUES = {
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "use_bidirectional_attention": "vision",
}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 48,
}


def _scaled(oracle: str) -> Any:
    """Return what makes a model whose scales are not the ones that it begins with."""

    def make(config: Any) -> Any:
        model = getattr(transformers, oracle)(config)
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("layer_scalar", "router.scale", "per_expert_scale")):
                torch.nn.init.uniform_(value.data, 0.5, 1.5)
        return model

    return make


def _gemma4(
    options: dict[str, Any], variants: dict[str, Any] | None = None, **given: Any
) -> ModelCase:
    config = "Gemma4TextConfig"
    case = family("Gemma4", GEMMA4 | options, variants, config=config, **given)
    return replace(case, oracle=_scaled("Gemma4ForCausalLM"))


GEMMA3N = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "intermediate_size": [96, 64, 96, 96],
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "sliding_window": 7,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 100,
    "activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.0],
    "altup_num_inputs": 3,
    "laurel_rank": 8,
    "final_logit_softcapping": 3.0,
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        FULL: {"rope_type": "default", "rope_theta": 500.0},
    },
}


def _gemma3n(config: Any) -> Any:
    """Return a model that weighs its streams, which a new one does not."""
    model = transformers.Gemma3nForCausalLM(config)
    for name, value in model.named_parameters():
        if name.endswith("correct_output_scale"):
            torch.nn.init.uniform_(value.data, 0.5, 1.5)
        if name.endswith(("modality_router.weight", "coefs.weight")):
            torch.nn.init.normal_(value.data, std=1.0)
    return model


GEMMA = [
    _gemma4(
        SMALL,
        {
            "no-sharing": {"num_kv_shared_layers": 0},
            "keys-as-values": KEYS_AS_VALUES | LARGE,
            "usual-layers": {
                "layer_types": None,
                "num_hidden_layers": 7,
                "num_kv_shared_layers": 1,
                "attention_bias": True,
                "rope_parameters": None,
                "tie_word_embeddings": False,
                "final_logit_softcapping": None,
            },
        },
        refused={
            "hidden_activation": "relu",
            "use_bidirectional_attention": "all",
            "num_kv_shared_layers": 4,
            "vocab_size_per_layer_input": 64,
            "per_layer_config": {"1": {"num_attention_heads": 2}},
        },
    ),
    _gemma4(LARGE | KEYS_AS_VALUES | EXPERTS, name="gemma4-experts", refused={"top_k_experts": 0}),
    _gemma4(
        SMALL | KEYS_AS_VALUES,
        name="gemma4-hub",
        edit=in_turn(
            rewrite(per_layer_config=None, global_head_dim=32, num_global_key_value_heads=1),
            add("model.layers.2.self_attn.k_proj.weight", torch.ones(32, 64)),
            add("model.layers.2.self_attn.v_proj.weight", torch.ones(32, 64)),
            add("model.layers.3.self_attn.k_norm.weight", torch.ones(32)),
        ),
    ),
    replace(
        family(
            "Gemma3n",
            GEMMA3N,
            {
                "all-ids": {"vocab_size_per_layer_input": 128, "altup_correct_scale": False},
                "no-sharing": {"num_kv_shared_layers": 0, "attention_bias": True},
                "usual-layers": {
                    "num_hidden_layers": 11,
                    "num_kv_shared_layers": 1,
                    "layer_types": None,
                    "intermediate_size": 48,
                    "activation_sparsity_pattern": None,
                    "rope_parameters": None,
                    "tie_word_embeddings": False,
                },
            },
            config="Gemma3nTextConfig",
            refused={
                "hidden_activation": "relu",
                "altup_active_idx": 1,
                "num_kv_shared_layers": 4,
                "activation_sparsity_pattern": [0.5],
                "intermediate_size": [96],
                "altup_num_inputs": 1,
            },
        ),
        oracle=_gemma3n,
    ),
    replace(
        family(
            "Gemma3n",
            GEMMA3N | {"rope_parameters": None},
            name="gemma3n-hub",
            config="Gemma3nTextConfig",
            edit=in_turn(
                add("model.layers.3.self_attn.v_proj.weight", torch.ones(32, 64)),
                rewrite(rope_parameters=None, rope_theta=1e6, rope_local_base_freq=1e4),
            ),
        ),
        oracle=_gemma3n,
    ),
]
