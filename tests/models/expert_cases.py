"""The cases of decoders with experts."""

from __future__ import annotations

from tests.models.case_options import (
    FULL,
    HY3,
    PLAIN_ROPE,
    SIGMOID_MOE,
    SLIDING,
    SOFTMAX_MOE,
    TIED,
    YARN,
)
from tests.models.case_parts import family, in_turn, inside_text, rename, rewrite

EXPERTS = [
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
EXPERTS += [
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
EXPERTS += [
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
EXPERTS += [
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
EXPERTS += [
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
EXPERTS += [
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
