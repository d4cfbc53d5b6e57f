"""Writes small GGUF files with the format's own package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

HIDDEN, INNER, HEADS, KV_HEADS, VOCAB = 32, 64, 4, 2, 48
TOKENS = [f"<{i}>" for i in range(VOCAB)]


def llama_tensors(num_layers: int = 1, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return random tensors by the names that GGUF gives those of a Llama."""
    draw = np.random.default_rng(seed)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (VOCAB, HIDDEN), "output_norm": (HIDDEN,), "output": (VOCAB, HIDDEN)}
    for layer in range(num_layers):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (HIDDEN,),
                "attn_q": (HIDDEN, HIDDEN),
                "attn_k": (kv, HIDDEN),
                "attn_v": (kv, HIDDEN),
                "attn_output": (HIDDEN, HIDDEN),
                "ffn_norm": (HIDDEN,),
                "ffn_gate": (INNER, HIDDEN),
                "ffn_up": (INNER, HIDDEN),
                "ffn_down": (HIDDEN, INNER),
            }.items()
        }
    return {
        f"{name}.weight": draw.standard_normal(shape).astype(np.float32) * np.float32(0.3)
        for name, shape in shapes.items()
    }


def split_gguf(
    path: Path, name: str, num_claimed: int | None = None, repeated: str | None = None
) -> list[Path]:
    """Write a Llama in three parts, the first with metadata alone.

    Args:
        path: A folder.
        name: Of the model.
        num_claimed: What the first part says that all have.
        repeated: A tensor that the last part has as well.
    """
    tensors = llama_tensors()
    names = list(tensors)
    shares = [[], names[:5], names[5:] + ([repeated] if repeated else [])]
    paths = [path / f"{name}-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for number, (part, share) in enumerate(zip(paths, shares, strict=True)):
        split: dict[str, Any] = {"split.no": number, "split.count": 3}
        split["split.tensors.count"] = num_claimed or len(names)
        chosen = {tensor: tensors[tensor] for tensor in share}
        if number == 0:
            write_gguf(part, chosen, num_layers=1, metadata=split)
            continue
        writer = GGUFWriter(part, "llama")
        for key, value in split.items():
            writer.add_uint16(key, value)
        for tensor, data in chosen.items():
            writer.add_tensor(tensor, data)
        _write(writer)
    return paths


def _write(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(
    path: Path,
    tensors: dict[str, NDArray[np.float32]] | None = None,
    *,
    architecture: str = "llama",
    types: dict[str, GGMLQuantizationType] | None = None,
    metadata: dict[str, Any] | None = None,
    num_layers: int | None = None,
) -> Path:
    """Write a Llama's metadata and ``tensors``, those in ``types`` quantised."""
    from gguf import quantize

    tensors = llama_tensors() if tensors is None else tensors
    writer = GGUFWriter(path, architecture)
    if num_layers is None:
        num_layers = sum(name.endswith("attn_q.weight") for name in tensors)
    writer.add_block_count(num_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    for name, tensor in tensors.items():
        kind = (types or {}).get(name, GGMLQuantizationType.F32)
        data = tensor if kind == GGMLQuantizationType.F32 else quantize(tensor, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    _write(writer)
    return path
