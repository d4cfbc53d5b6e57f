"""The cases of decoders with states: convolutions, state spaces, linear attention."""

from __future__ import annotations

from tests.models.case_options import FULL, LATENT, SIGMOID_MOE, TIED, UNTIED
from tests.models.case_parts import family

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
