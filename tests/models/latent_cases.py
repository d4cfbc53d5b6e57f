"""The cases of decoders that keep latents or choose which tokens they attend to."""

from __future__ import annotations

from headstock.testing.oracle.case import SIZES
from tests.models.case_options import FULL, LATENT, SIGMOID_MOE, TIED, YARN
from tests.models.case_parts import family, inside_text
from tests.models.conftest import V3

INDEXED = (
    SIGMOID_MOE
    | LATENT
    | {"q_lora_rank": 40, "index_topk": 6, "index_head_dim": 24, "index_n_heads": 16}
)
LATENTS = [
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
LATENTS += [
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
LATENTS += [
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
LATENTS += [
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
LATENTS += [
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
