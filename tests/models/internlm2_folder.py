"""A Llama's folder, rewritten as the authors of InternLM2 save theirs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NAMES = {
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "model.tok_embeddings",
    "lm_head": "output",
}


def as_internlm2(path: Path, **more: object) -> None:
    """Fuse queries, keys and values by key head, and give all the authors' names."""
    config = json.loads((path / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["head_dim"]
    found: dict[str, Tensor] = {}
    tensors = load_file(path / "model.safetensors")
    for name, tensor in tensors.items():
        if ".q_proj." in name:
            parts = [
                tensors[name.replace("q_proj", other)].reshape(kv_heads, count, size, -1)
                for other, count in (("q_proj", heads // kv_heads), ("k_proj", 1), ("v_proj", 1))
            ]
            fused = torch.cat(parts, 1).flatten(0, 2)
            new = name.replace("self_attn.q_proj", "attention.wqkv")
            found[new] = fused if name.endswith("weight") else fused[:, 0].contiguous()
        elif "k_proj" not in name and "v_proj" not in name:
            for old, new in NAMES.items():
                name = name.replace(old, new)
            found[name] = tensor
    save_file(found, path / "model.safetensors")
    changed = {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "bias": config["attention_bias"],
        "rope_theta": config["rope_parameters"]["rope_theta"],
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    for key in ("rope_parameters", "attention_bias", "head_dim"):
        config.pop(key)
    (path / "config.json").write_text(json.dumps(config | changed | more))
