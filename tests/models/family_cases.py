"""The cases of every family that has a file: what its real checkpoints use, in small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import transformers

from headstock.testing.oracle.case import SIZES, ModelCase
from tests.models.case_parts import family, in_turn, inside_text, longrope, rename, rewrite
from tests.models.conftest import FAMILIES, V3
from tests.models.harness import REGISTRY

SLIDING, FULL = "sliding_attention", "full_attention"
BOTH = {"num_hidden_layers": 3, "layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 7}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SOFTMAX_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
HY3 = {
    "num_hidden_layers": 3,
    "head_dim": 16,
    "moe_intermediate_size": 48,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
SIGMOID_MOE = {
    "num_hidden_layers": 3,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}


def _first(name: str) -> ModelCase:
    config, oracle, options = FAMILIES[name]
    model = REGISTRY.load(oracle.__name__)
    given = {"config": config, "oracle": oracle, "options": options}
    return ModelCase(name=name, model=model, variants=MORE.get(name, {}), **given)


MORE: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "llama": {"biases": {"attention_bias": True, "mlp_bias": True}},
    "qwen3": {"window": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}},
}
"""Variants of the families whose options other tests share."""


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
SPARSE = [
    family(
        "Qwen2Moe",
        SOFTMAX_MOE | {"shared_expert_intermediate_size": 40},
        {"normalised": {"norm_topk_prob": True}, "one-dense": {"mlp_only_layers": [1]}},
    ),
    family(
        "Glm4Moe",
        SIGMOID_MOE | {"head_dim": 16, "use_qk_norm": True, "attention_bias": True},
        {"no-qk-norm": {"use_qk_norm": False}, "groups": {"n_group": 4, "topk_group": 2}},
    ),
    family(
        "Glm4MoeLite",
        SIGMOID_MOE
        | {
            "num_key_value_heads": 4,
            "q_lora_rank": 40,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 24,
            "qk_rope_head_dim": 16,
            "v_head_dim": 20,
        },
        {"usual-queries": {"q_lora_rank": None}},
    ),
    family(
        "Dots1",
        SIGMOID_MOE | {"head_dim": 16, "sliding_window": 7, "max_window_layers": 2},
        {"groups": {"n_group": 4, "topk_group": 2, "n_shared_experts": 2}},
    ),
    family(
        "Ernie4_5_Moe",
        {
            "num_hidden_layers": 3,
            "moe_num_experts": 6,
            "moe_k": 2,
            "moe_intermediate_size": 48,
            "moe_num_shared_experts": 2,
        },
        {"every-other": {"moe_layer_interval": 2}, "no-shared": {"moe_num_shared_experts": 0}},
    ),
    family(
        "HunYuanDenseV1",
        {
            "head_dim": 24,
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "dynamic",
                "alpha": 50.0,
                "factor": 1.0,
                "rope_theta": 1000.0,
            },
        },
        {"plain-angles": {**PLAIN_ROPE, "attention_bias": True, **TIED}},
        refused={"use_cla": True},
    ),
    family(
        "HunYuanMoEV1",
        {"head_dim": 16, "pad_token_id": 0, "num_experts": 6, "moe_topk": 2},
        {"by-layer": {"moe_topk": [1, 3]}},
    ),
    family(
        "Llama4",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "intermediate_size_mlp": 80,
            "num_local_experts": 6,
            "attention_chunk_size": 6,
            "interleave_moe_layer_step": 2,
            "floor_scale": 5,
            "attn_scale": 0.3,
        },
        {
            "all-experts": {"moe_layers": [0, 1, 2, 3], "use_qk_norm": False},
            "untuned": {"attn_temperature_tuning": False, "no_rope_layers": [0, 1, 0, 1]},
            "one-chunk": {"attention_chunk_size": 256},
        },
        config="Llama4TextConfig",
        refused={"num_experts_per_tok": 2},
    ),
    family(
        "MiniMaxM2",
        {
            "head_dim": 16,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1000.0},
        },
        refused={"qk_norm_type": "per_head"},
    ),
    family(
        "SolarOpen",
        {
            "head_dim": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "routed_scaling_factor": 1.5,
            "pad_token_id": 0,
        },
        {
            "groups": {"n_group": 4, "topk_group": 2, "norm_topk_prob": False},
            "biases": {"attention_bias": True, "n_shared_experts": 2, **TIED},
            "yarn": {"rope_parameters": {**YARN, "rope_theta": 1000.0}},
        },
        refused={"use_qk_norm": True, "partial_rotary_factor": 0.5},
    ),
    family(
        "HYV3",
        HY3,
        {
            "by-layer": {"mlp_layer_types": ["sparse", "dense", "sparse"], **TIED},
            "two-shared": {"num_shared_experts": 2, "mlp_bias": True, "attention_bias": True},
        },
        refused={"hidden_act": "gelu", "first_k_dense_replace": 2, "route_norm": False},
    ),
    family(
        "HYV3",
        HY3,
        name="hyv3-hub",
        edit=rewrite(
            mlp_layer_types=None,
            first_k_dense_replace=1,
            num_nextn_predict_layers=1,
            expert_hidden_dim=HY3["moe_intermediate_size"],
            qk_norm=True,
            route_norm=True,
            moe_router_use_sigmoid=True,
            moe_router_enable_expert_bias=True,
            output_router_logits=True,
            enable_lm_head_fp32=True,
            enable_moe_fp32_combine=False,
            use_grouped_mm=False,
        ),
    ),
    family(
        "HYV3",
        HY3,
        name="hyv3-transformers-names",
        edit=in_turn(
            rename(r"mlp\.router\.gate\.weight", "mlp.gate.weight"),
            rename(r"mlp\.expert_bias", "mlp.e_score_correction_bias"),
            rename(r"mlp\.shared_mlp\.", "mlp.shared_experts."),
        ),
    ),
]
AFMOE = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "sliding_window": 7,
    "moe_intermediate_size": 48,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "route_scale": 2.5,
    "mup_enabled": True,
}
SPARSE += [
    family(
        "Afmoe",
        AFMOE,
        {
            "layers": {"layer_types": [FULL, SLIDING, SLIDING, FULL], "num_dense_layers": 2},
            "unscaled": {"mup_enabled": False, "num_shared_experts": 1, **TIED},
        },
        refused={"attention_bias": True, "n_group": 2, "route_norm": False},
    ),
]
MIMO = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "v_head_dim": 16,
    "sliding_window": 7,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "rope_parameters": {
        FULL: {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.334},
        SLIDING: {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.334},
    },
}
SPARSE += [
    family(
        "MiMoV2Flash",
        MIMO,
        {
            "two-kv-heads": {"num_key_value_heads": 2, "mlp_layer_types": ["sparse"] * 3},
            "groups": {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5, **TIED},
            "unscaled": {
                "layer_types": [SLIDING, FULL, FULL],
                "attention_value_scale": None,
                "attention_bias": True,
                "norm_topk_prob": False,
            },
        },
        refused={
            "swa_head_dim": 32,
            "swa_num_key_value_heads": 8,
            "add_full_attention_sink_bias": True,
            "scoring_func": "softmax",
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        },
    ),
]
LAGUNA = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "layer_types": [FULL, SLIDING, SLIDING, FULL],
    "num_attention_heads_per_layer": [4, 6, 4, 2],
    "sliding_window": 7,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
    "moe_routed_scaling_factor": 2.5,
    "pad_token_id": 0,
}
SPARSE += [
    family(
        "Laguna",
        LAGUNA,
        {
            "by-feature": {
                "gating": "per-element",
                "mlp_layer_types": ["sparse", "dense", "dense", "sparse"],
                "moe_router_logit_softcapping": 1.5,
                "attention_bias": True,
                **TIED,
            },
            "usual-layers": {
                "layer_types": None,
                "num_attention_heads_per_layer": None,
                "gating": "per-head",
                "rope_parameters": {
                    FULL: {**YARN, "rope_theta": 500.0, "partial_rotary_factor": 0.5}
                },
            },
        },
        refused={
            "hidden_act": "gelu",
            "gating": False,
            "moe_apply_router_weight_on_input": True,
        },
    ),
    family(
        "Laguna",
        LAGUNA,
        name="laguna-transformers-names",
        edit=in_turn(
            rename(r"mlp\.experts\.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
            rename(r"mlp\.shared_expert\.", "mlp.shared_experts."),
        ),
    ),
]
STEP = {
    "num_hidden_layers": 3,
    "head_dim": 16,
    "layer_types": [FULL, SLIDING, SLIDING],
    "sliding_window": 7,
    "num_sliding_attention_heads": 6,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "share_expert_dim": 40,
    "moe_router_scaling_factor": 3.0,
    "swiglu_limits": [0.0, None, 0.2],
    "swiglu_limits_shared": [0.3, 0.0, 0.2],
    "rope_parameters": {
        FULL: {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 32.0,
            "original_max_position_embeddings": 32,
            "partial_rotary_factor": 0.5,
        },
        SLIDING: {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0},
    },
}
STEP_IMAGES = inside_text(
    "Step3p7Config",
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
    },
)
SPARSE += [
    family(
        "Step3p7",
        STEP,
        {
            "full": {"layer_types": [FULL] * 3, "query_pre_attn_scalar": 9},
            "unbounded": {"swiglu_limits": None, "swiglu_limits_shared": None},
        },
        config=STEP_IMAGES,
        oracle="Step3p7ForConditionalGeneration",
    ),
]
EXAONE_MOE = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "sliding_window": 7,
    "moe_intermediate_size": 48,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
SPARSE += [
    family(
        "ExaoneMoe",
        EXAONE_MOE,
        {
            "groups": {"n_group": 4, "topk_group": 2, "num_shared_experts": 2, **TIED},
            "layers": {
                "layer_types": [FULL, SLIDING, SLIDING, FULL],
                "mlp_layer_types": ["sparse", "dense", "sparse", "dense"],
                "norm_topk_prob": False,
            },
        },
        refused={"scoring_func": "softmax", "attention_bias": True},
    ),
]
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
}
INDEXED = (
    SIGMOID_MOE
    | LATENT
    | {"q_lora_rank": 40, "index_topk": 6, "index_head_dim": 24, "index_n_heads": 16}
)
SPARSE += [
    family(
        "DeepseekV32",
        INDEXED | {"n_group": 4, "topk_group": 2},
        {
            "all-chosen": {"index_topk": 2048},
            "one-chosen": {"index_topk": 1, "attention_bias": True},
            "yarn": {
                "rope_parameters": {
                    **YARN,
                    "rope_theta": 1000.0,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                }
            },
        },
        refused={"mlp_bias": True, "scoring_func": "softmax"},
    ),
    family(
        "GlmMoeDsa",
        INDEXED,
        {
            "shared": {
                "num_hidden_layers": 4,
                "indexer_types": ["full", "shared", "full", "shared"],
            },
        },
        refused={"indexer_types": ["shared", "full", "full"]},
    ),
]
KIMI_K25 = inside_text(
    "Kimi_K25Config",
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "pos_emb_height": 4,
        "pos_emb_width": 4,
    },
    projection_hidden_size=32,
    tie_word_embeddings=False,
)
KIMI_TEXT = V3 | {
    "model_type": "deepseek_v3",
    "n_group": 1,
    "topk_group": 1,
    "rope_parameters": {**YARN, "rope_theta": 1000.0, "mscale": 1.0, "mscale_all_dim": 1.0},
}
SPARSE += [
    family(
        "KimiK25",
        KIMI_TEXT,
        {"groups": {"n_group": 4, "topk_group": 2}},
        config=KIMI_K25,
        oracle="Kimi_K25ForConditionalGeneration",
    ),
]
BLOCKS = "minimax_m3_sparse"
M3 = {
    "head_dim": 16,
    "num_hidden_layers": 3,
    "layer_types": [FULL, BLOCKS, BLOCKS],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "dense_intermediate_size": 80,
    "shared_intermediate_size": 40,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "index_n_heads": 2,
    "index_head_dim": 24,
    "index_block_size": 5,
    "index_topk_blocks": 2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.5,
    },
}
M3_IMAGES = inside_text(
    "MiniMaxM3VLConfig",
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 2,
        "image_size": 8,
    },
    projector_hidden_size=32,
)
SPARSE += [
    family(
        "MiniMaxM3VL",
        M3,
        {
            "all-chosen": {"index_topk_blocks": 99, "routed_scaling_factor": 1.0},
            "own-block-alone": {"index_topk_blocks": 1, "swiglu_limit": 0.5},
            "two-last": {"index_local_blocks": 2, "index_topk_blocks": 3, "index_block_size": 3},
            "no-last": {"index_local_blocks": 0},
            "blocks-of-pages": {"index_block_size": 8, "swiglu_alpha": 1.0},
            "dense": {"layer_types": None, "mlp_layer_types": None, **TIED},
            "one-kv-head": {"num_key_value_heads": 1, "index_n_heads": 1},
        },
        name="minimaxm3",
        config="MiniMaxM3VLTextConfig",
        refused={
            "index_n_heads": 1,
            "index_local_blocks": 3,
            "hidden_act": "gelu",
            "scoring_func": "softmax",
            "use_gemma_norm": False,
            "n_shared_experts": 2,
        },
    ),
    family(
        "MiniMaxM3Sparse",
        M3,
        name="minimaxm3-images",
        config=M3_IMAGES,
        oracle="MiniMaxM3SparseForConditionalGeneration",
    ),
]
MISTRAL4 = (
    LATENT
    | {key: n for key, n in SIGMOID_MOE.items() if key != "norm_topk_prob"}
    | {
        "q_lora_rank": 40,
        "rope_parameters": {
            **YARN,
            "rope_theta": 1000.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
    }
)
SPARSE += [
    family(
        "Mistral4",
        MISTRAL4,
        {
            "groups": {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 0},
            "as-scored": {"norm_topk_prob": False, "q_lora_rank": None, **TIED},
            "halves": {"rope_interleave": False, "attention_bias": True},
        },
        refused={"scoring_func": "sigmoid", "hidden_act": "gelu"},
    ),
]
LONGCAT = LATENT | {
    "num_layers": 2,
    "ffn_hidden_size": 96,
    "expert_ffn_hidden_size": 48,
    "n_routed_experts": 5,
    "zero_expert_num": 4,
    "moe_topk": 2,
    "q_lora_rank": 40,
    "head_dim": 16,
    "pad_token_id": 0,
}
LONGCAT_SIZES = {key: n for key, n in SIZES.items() if not key.startswith(("num_hidden", "inter"))}
SPARSE += [
    family(
        "LongcatFlash",
        LONGCAT,
        {
            "no-identities": {"zero_expert_num": 0, "attention_bias": True},
            "yarn": {"rope_parameters": {**YARN, "rope_theta": 1000.0, "mscale_all_dim": 1.0}},
        },
        sizes=LONGCAT_SIZES,
        refused={"router_bias": True, "zero_expert_type": "drop"},
    ),
]
CONVOLUTIONS = {"num_hidden_layers": 3, "layer_types": ["conv", FULL, "conv"], "pad_token_id": 0}
STATES = [
    family(
        "Lfm2",
        CONVOLUTIONS | {"block_multiple_of": 16, "block_ffn_dim_multiplier": 1.5},
        {
            "biases": {"conv_bias": True, **UNTIED},
            "wider": {"conv_L_cache": 4, "block_auto_adjust_ff_dim": False},
            "attention-last": {"layer_types": ["conv", "conv", FULL]},
        },
    ),
    family(
        "Lfm2Moe",
        CONVOLUTIONS
        | {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "num_dense_layers": 1,
            "routed_scaling_factor": 1.5,
        },
        {"no-bias": {"use_expert_bias": False, "norm_topk_prob": False}},
    ),
]
MAMBA = {
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 24,
}
STATES += [
    family(
        "Bamba",
        MAMBA | {"attn_layer_indices": [1]},
        {
            "groups": {"mamba_n_groups": 4, "mamba_d_conv": 3, "mamba_proj_bias": True},
            "limits": {"time_step_limit": (0.4, 0.9), "mamba_conv_bias": False},
        },
    ),
    family(
        "GraniteMoeHybrid",
        MAMBA
        | {
            "layer_types": ["mamba", FULL, "mamba"],
            "shared_intermediate_size": 40,
            "num_local_experts": 6,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
        {
            "dense": {"num_local_experts": 0, "position_embedding_type": "nope", **TIED},
            "rope": {"position_embedding_type": "rope", "mamba_n_groups": 2},
            "attention-last": {"layer_types": ["mamba", "mamba", FULL]},
        },
        refused={"position_embedding_type": "alibi"},
    ),
]
STATES += [
    family(
        "FalconH1",
        MAMBA
        | {
            "num_hidden_layers": 2,
            "mamba_d_ssm": 128,
            "embedding_multiplier": 5.6,
            "lm_head_multiplier": 0.3,
            "mlp_multipliers": [0.8, 1.7],
            "key_multiplier": 0.4,
            "attention_in_multiplier": 1.3,
            "attention_out_multiplier": 0.7,
            "ssm_multipliers": [0.5, 1.5, 0.7, 1.3, 0.9],
            "ssm_in_multiplier": 1.25,
            "ssm_out_multiplier": 0.6,
        },
        {
            "norm": {"mamba_rms_norm": True},
            "norm-after": {"mamba_rms_norm": True, "mamba_norm_before_gate": False},
            "groups": {"mamba_rms_norm": True, "mamba_n_groups": 2, "projectors_bias": True},
        },
        refused={"attention_bias": True},
    ),
    family(
        "Mamba2",
        {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 24},
        {
            "one-group": {"n_groups": 1, "use_bias": True, **TIED},
            "limits": {"time_step_limit": (0.05, 0.9), "use_conv_bias": False, "conv_kernel": 3},
        },
    ),
    family(
        "NemotronH",
        {
            "layers_block_type": ["linear_attention", "mlp", FULL, "moe", "linear_attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 24,
            "n_groups": 2,
            "head_dim": 16,
            "moe_intermediate_size": 48,
            "moe_shared_expert_intermediate_size": 40,
            "n_routed_experts": 6,
            "routed_scaling_factor": 2.5,
        },
        {
            "latent": {"moe_latent_size": 32, "n_group": 2, "topk_group": 1},
            "mlp-last": {"layers_block_type": ["linear_attention", FULL, "mlp"], "use_bias": True},
            "biases": {"mlp_bias": True, "use_conv_bias": False, "norm_topk_prob": False},
        },
        refused={"mlp_hidden_act": "silu"},
    ),
]
JAMBA = {
    "num_hidden_layers": 4,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "num_experts": 6,
    "mamba_d_state": 8,
    "pad_token_id": 0,
}
STATES += [
    family(
        "Jamba",
        JAMBA,
        {
            "biases": {"mamba_proj_bias": True, "mamba_conv_bias": False, **TIED},
            "attention-last": {"attn_layer_offset": 0, "mamba_d_conv": 3, "mamba_dt_rank": 5},
            "dense": {"num_experts": 1, "mamba_d_state": 24, "mamba_expand": 3},
        },
        refused={"hidden_act": "gelu", "sliding_window": 8},
    ),
]
LINEAR = "linear_attention"
KIMI_LINEAR = (
    LATENT
    | {key: SIGMOID_MOE[key] for key in ("moe_intermediate_size", "num_experts_per_tok")}
    | {
        "num_hidden_layers": 3,
        "layer_types": [LINEAR, FULL, LINEAR],
        "num_local_experts": 8,
        "linear_head_dim": 24,
        "linear_num_heads": 4,
        "pad_token_id": 0,
    }
)
STATES += [
    family(
        "KimiLinear",
        KIMI_LINEAR,
        {
            "usual-layers": {"layer_types": None, "num_hidden_layers": 5},
            "attention-last": {"layer_types": [LINEAR, LINEAR, FULL], "q_lora_rank": 40},
            "groups": {"n_group": 4, "topk_group": 2, "linear_conv_kernel_dim": 3},
            "as-scored": {"norm_topk_prob": False, "attention_bias": True, "n_shared_experts": 2},
        },
        refused={"mla_use_nope": False, "moe_router_activation_func": "softmax"},
    ),
]
PLAIN = [*(_first(name) for name in FAMILIES), *DENSE, *SPARSE, *STATES]
