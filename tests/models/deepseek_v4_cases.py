"""The cases of DeepSeek V4: windows, entries of either kind, streams, and experts by a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

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

BLOCK, GROUP = 32, 32
"""Rows and columns that share a scale in 8 bits; columns that do in 4."""
EIGHT_BITS = re.compile(
    r"\.attn\.(wq_a|wq_b|wkv|wo_a|wo_b)\.weight|\.indexer\.wq_b\.weight"
    r"|\.self_attn\.(q_a_proj|q_b_proj|kv_proj|o_a_proj|o_b_proj)\.weight"
    r"|\.indexer\.q_b_proj\.weight|\.shared_experts\.\w+\.weight"
)
"""The hub's names of what is in 8 bits, and those of transformers."""
FOUR_BITS = re.compile(r"\.experts\.\d+\.w\d\.weight|\.experts\.(gate_up_proj|down_proj)")
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def eight_bits(weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return values of blocks, the exponents of their scales, and what both stand for."""
    rows, columns = weight_OI.shape
    padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK)
    padded[:rows, :columns] = weight_OI
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    exponent = blocks.abs().amax(dim=(1, 3)).log2().floor() - 8
    each = exponent.exp2().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    each = each[:rows, :columns]
    values = (weight_OI / each).clamp(-448, 448).to(torch.float8_e4m3fn)
    return values, exponent.exp2().to(torch.float8_e8m0fnu), values.float() * each


def four_bits(weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return two values a byte, the exponents of groups of a row, and what both stand for."""
    exponent_OG = weight_OI.unflatten(-1, (-1, GROUP)).abs().amax(dim=-1).log2().floor() - 2
    each = exponent_OG.exp2().repeat_interleave(GROUP, dim=-1)
    code = ((weight_OI / each).abs().unsqueeze(-1) - E2M1).abs().argmin(dim=-1)
    meant = E2M1[code] * weight_OI.sign() * each
    nibbles = (code + 8 * (weight_OI < 0)).to(torch.uint8)
    packed = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return packed.view(torch.int8), exponent_OG.exp2().to(torch.float8_e8m0fnu), meant


def rounded(config: Any) -> Any:
    """Return the oracle, its weights such as 8 and 4 bits can say."""
    model = made(config)
    for name, value in model.named_parameters():
        if FOUR_BITS.search(name):
            value.data.copy_(four_bits(value.data)[2])
        elif EIGHT_BITS.search(name):
            value.data.copy_(eight_bits(value.data)[2])
    return model


def quantize(folder: Path) -> None:
    """Write what was rounded as the hub has it: beside each ``weight`` its ``scale``."""
    file, written = folder / "model.safetensors", dict[str, Tensor]()
    for name, value in load_file(file).items():
        kind = four_bits if FOUR_BITS.search(name) else eight_bits
        if not (FOUR_BITS.search(name) or EIGHT_BITS.search(name)):
            written[name] = value
            continue
        values, scale, meant = kind(value)
        assert torch.equal(meant, value), f"{name} was not rounded"
        module = name.removesuffix("weight")
        written |= {name: values.contiguous(), f"{module}scale": scale}
    assert any(tensor.dtype == torch.int8 for tensor in written.values())
    save_file(written, file, metadata={"format": "pt"})


HUB_SCALES = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "weight_block_size": [BLOCK, BLOCK],
}
HUB_EDITS = (
    rename(r"^model\.embed_tokens", "embed"),
    rename(r"^model\.hc_head\.hc_", "hc_head_"),
    rename(r"^model\.", ""),
    rename(r"^lm_head\.", "head."),
    add("mtp.0.enorm.weight", torch.ones(64)),
)
HUB_KEYS: Mapping[str, Any] = {
    "layer_types": None,
    "compress_ratios": [0, 4, 128, 4, 0],
    "compress_rates": None,
    "compress_rate_hca": 8,
    "mlp_layer_types": None,
    "num_hash_layers": 1,
    "partial_rotary_factor": None,
    "qk_rope_head_dim": 8,
    "rope_parameters": None,
    "rope_scaling": YARN,
    "rope_theta": 10000.0,
}
HUB_ROPE = {"rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 500.0}}
HUB_SIZES = {"moe_intermediate_size": 64, "q_lora_rank": 64, "o_lora_rank": 16}
DEEPSEEK_V4_HUB = [
    replace(
        _case(name="deepseekv4-hub"),
        options=HUB_ROPE,
        edit=in_turn(*HUB_EDITS, rewrite(**HUB_KEYS)),
        refused={"compress_ratios": [0, 4, 16, 4]},
    ),
    replace(
        _case(name="deepseekv4-fp8-fp4"),
        options=HUB_ROPE | HUB_SIZES,
        oracle=rounded,
        edit=in_turn(
            *HUB_EDITS,
            quantize,
            rewrite(**HUB_KEYS, expert_dtype="fp4", quantization_config=HUB_SCALES),
        ),
    ),
]
