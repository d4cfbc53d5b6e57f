"""Cases of checkpoints as the hub has them: old keys, old names, fused and parted tensors."""

from __future__ import annotations

import torch

from tests.models.case_parts import add, family, in_turn, rename, rewrite, rewrite_text
from tests.models.family_cases import (
    CONVOLUTIONS,
    FULL,
    GPT2,
    INDEXED,
    KIMI_K25,
    KIMI_LINEAR,
    KIMI_TEXT,
    LINEAR,
    LONGCAT,
    LONGCAT_SIZES,
    PLAIN_ROPE,
    SIGMOID_MOE,
    SLIDING,
    YARN,
)

OLD_ROPE = {"rope_parameters": None, "rope_theta": 500.0}
HUB = [
    family(
        "GPT2",
        {},
        name="gpt2-hub",
        oracle="GPT2LMHeadModel",
        sizes=GPT2,
        edit=in_turn(
            rename(r"^transformer\.", ""),
            add("h.0.attn.bias", torch.ones(1, 1, 8, 8)),
            add("h.1.attn.masked_bias", torch.tensor(-1e4)),
            rewrite(n_ctx=256, task_specific_params={"text-generation": {"max_length": 50}}),
        ),
    ),
    family(
        "Qwen2",
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 7, **PLAIN_ROPE},
        name="qwen2-hub",
        edit=rewrite(layer_types=None, **OLD_ROPE),
    ),
    family(
        "Phi3",
        {
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.3, 2.0, 2.0, 3.0],
                "long_factor": [1.0, 2.0, 4.0, 9.0, 9.0, 9.0],
            },
            "original_max_position_embeddings": 128,
        },
        name="phi3-hub",
        edit=rewrite(
            partial_rotary_factor=0.75,
            rope_scaling={
                "type": "su",
                "short_factor": [1.0, 1.1, 1.3, 2.0, 2.0, 3.0],
                "long_factor": [1.0, 2.0, 4.0, 9.0, 9.0, 9.0],
            },
            **OLD_ROPE,
        ),
    ),
    family(
        "SmolLM3",
        {
            "num_hidden_layers": 4,
            "pad_token_id": 0,
            "use_sliding_window": True,
            "sliding_window": 7,
            **PLAIN_ROPE,
        },
        name="smollm3-hub",
        edit=rewrite(layer_types=None, no_rope_layers=None, **OLD_ROPE),
    ),
    family(
        "Glm4",
        {"head_dim": 16, "pad_token_id": 0, **PLAIN_ROPE},
        name="glm4-hub",
        edit=rewrite(partial_rotary_factor=0.5, **OLD_ROPE),
    ),
    family(
        "Olmo3",
        {
            "num_hidden_layers": 4,
            "sliding_window": 7,
            "pad_token_id": 0,
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 500.0},
                FULL: {**YARN, "rope_theta": 500.0},
            },
        },
        name="olmo3-hub",
        edit=rewrite(layer_types=None, rope_scaling=YARN, **OLD_ROPE),
    ),
    family(
        "Cohere2",
        {"num_hidden_layers": 4, "sliding_window": 7, "pad_token_id": 0, **PLAIN_ROPE},
        name="cohere2-hub",
        edit=rewrite(layer_types=None, sliding_window_pattern=4, **OLD_ROPE),
    ),
    family(
        "Exaone4",
        {"num_hidden_layers": 4, "sliding_window": 7, **PLAIN_ROPE},
        name="exaone4-hub",
        edit=rewrite(layer_types=None, sliding_window_pattern="LLLG", **OLD_ROPE),
    ),
    family(
        "Lfm2",
        CONVOLUTIONS | {"block_multiple_of": 16, **PLAIN_ROPE},
        name="lfm2-hub",
        edit=rewrite(
            layer_types=None,
            full_attn_idxs=[1],
            intermediate_size=None,
            block_ff_dim=96,
            tie_word_embeddings=None,
            tie_embedding=True,
            **OLD_ROPE,
        ),
    ),
    family(
        "MiniMaxM2",
        {
            "head_dim": 16,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0},
        },
        name="minimaxm2-hub",
        edit=rewrite(rotary_dim=8, **OLD_ROPE),
    ),
    family(
        "Dots1",
        SIGMOID_MOE | {"head_dim": 16, "sliding_window": 7, "max_window_layers": 2, **PLAIN_ROPE},
        name="dots1-hub",
        edit=rewrite(layer_types=None, scoring_func="noaux_tc", **OLD_ROPE),
    ),
    family(
        "DeepseekV32",
        INDEXED | {"n_group": 4, "topk_group": 2, **PLAIN_ROPE},
        name="deepseekv32-hub",
        edit=rewrite(
            layer_types=None,
            mlp_layer_types=None,
            scoring_func="sigmoid",
            topk_method="noaux_tc",
            moe_layer_freq=1,
            **OLD_ROPE,
        ),
    ),
    family(
        "GlmMoeDsa",
        INDEXED | {"num_hidden_layers": 6, "index_topk_freq": 2, **PLAIN_ROPE},
        name="glmmoedsa-hub",
        edit=rewrite(
            layer_types=None,
            mlp_layer_types=None,
            indexer_types=None,
            index_topk_freq=2,
            index_skip_topk_offset=2,
            rope_interleave=True,
            indexer_rope_interleave=True,
        ),
    ),
    family(
        "GlmMoeDsa",
        INDEXED | {"index_topk_pattern": "FSF"},
        name="glmmoedsa-letters",
        edit=rewrite(indexer_types=None, index_topk_pattern="FSF"),
    ),
    family(
        "LongcatFlash",
        LONGCAT | PLAIN_ROPE,
        name="longcatflash-hub",
        sizes=LONGCAT_SIZES,
        edit=rewrite(
            mla_scale_q_lora=True,
            mla_scale_kv_lora=True,
            attention_method="MLA",
            zero_expert_type="identity",
            router_bias=False,
            norm_topk_prob=False,
            head_dim=None,
            **OLD_ROPE,
        ),
    ),
    family(
        "KimiK25",
        KIMI_TEXT,
        name="kimik25-hub",
        config=KIMI_K25,
        oracle="Kimi_K25ForConditionalGeneration",
        edit=in_turn(
            rename(r"^language_model\.model\.blocks\.", "language_model.model.layers."),
            rewrite_text(
                model_type="kimi_k2",
                scoring_func="sigmoid",
                topk_method="noaux_tc",
                moe_layer_freq=1,
                rope_parameters=None,
                rope_theta=1000.0,
                rope_scaling={
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                },
            ),
        ),
    ),
    family(
        "KimiLinear",
        KIMI_LINEAR | {"num_hidden_layers": 4, "layer_types": [LINEAR, FULL, LINEAR, FULL]},
        name="kimilinear-hub",
        edit=in_turn(
            rename(r"layers\.0\.block_sparse_moe\.", "layers.0.mlp."),
            rewrite(
                layer_types=None,
                mlp_layer_types=None,
                linear_head_dim=None,
                linear_num_heads=None,
                linear_conv_kernel_dim=None,
                first_k_dense_replace=1,
                linear_attn_config={
                    "full_attn_layers": [2, 4],
                    "kda_layers": [1, 3],
                    "head_dim": 24,
                    "num_heads": 4,
                    "short_conv_kernel_size": 4,
                },
                mla_use_nope=True,
                moe_layer_freq=1,
                moe_router_activation_func="sigmoid",
                use_grouped_topk=True,
                num_nextn_predict_layers=0,
                rope_scaling=None,
                rope_theta=10000.0,
            ),
        ),
    ),
]
"""Configurations in the keys of the hub: one base for angles, and no list of layers."""
