"""Options of configurations that the cases of several families have."""

from __future__ import annotations

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
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
}
