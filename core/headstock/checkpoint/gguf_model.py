"""A GGUF file as model files: tensors by their Hugging Face names, in canonical layouts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headstock.checkpoint.files import Array, ModelFiles, StoredTensor
from headstock.checkpoint.gguf_config import ROPE_FACTORS, family_of, read_config, read_tokenizer
from headstock.checkpoint.gguf_experts import split_experts
from headstock.checkpoint.gguf_file import GGUFFile, TensorInfo
from headstock.checkpoint.gguf_parts import model_name, open_parts
from headstock.checkpoint.ranges import check_ranges
from headstock.errors import CheckpointError

WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BARE = ("self_attn.sinks",)
"""Ends of names that have no ``.weight`` after them."""
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def open_gguf(path: Path) -> ModelFiles:
    """Return the model in ``path``, which may be any part of a split one.

    Raises:
        CheckpointError: The file is damaged or lacks what every model has; or it is a part, and
            another is missing.
        UnsupportedError: It is of an architecture that we do not know.
    """
    file = open_parts(path)
    config = read_config(file)
    check_ranges(path, config)
    tensors = [t for name, t in file.tensors.items() if name != ROPE_FACTORS]
    index = {t.name: t for info in tensors for t in _stored(file, info, config)}
    return ModelFiles(
        kind="gguf",
        path=path,
        name=model_name(path),
        config=config,
        generation_config={},
        index=index,
        read_tokenizer=lambda: read_tokenizer(GGUFFile(file.path)),
    )


def hugging_face_name(name: str, names: Mapping[str, str] | None = None) -> str:
    """Return the name that Hugging Face gives the tensor, or ``name`` if we know none.

    Args:
        name: In the file.
        names: What of a layer the family calls otherwise than most.
    """
    in_layer = IN_LAYER | dict(names or {})
    stem, _, kind = name.rpartition(".")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    match = _LAYER_TENSOR.fullmatch(name)
    if match and match[2] in in_layer:
        found = f"model.layers.{match[1]}.{in_layer[match[2]]}"
        return found if found.endswith(BARE) else f"{found}.{match[3]}"
    return name


def _stored(file: GGUFFile, info: TensorInfo, config: Mapping[str, Any]) -> Iterator[StoredTensor]:
    family = family_of(file)
    match = _LAYER_TENSOR.fullmatch(info.name)
    if match is not None and match[2] in family.experts:
        one = f"model.layers.{match[1]}.{family.experts[match[2]]}.{match[3]}"
        yield from split_experts(file, info, one)
        return
    order = _row_order(file, info, config)
    offset = family.norm_offset if info.name.endswith("norm.weight") else 0.0
    yield StoredTensor(
        name=hugging_face_name(info.name, family.names),
        shape=info.shape,
        dtype=info.block.dtype,
        layout=info.block.layout,
        group_size=info.block.group_size,
        num_bytes=info.num_bytes,
        file=info.file,
        read=partial(_read_rows, file, info, order, offset),
    )


def _read_rows(
    file: GGUFFile, info: TensorInfo, order: Array | None, offset: float, begin: int, end: int
) -> dict[str, Array]:
    """Convert rows [begin, end) of a matrix, or the same elements of a vector, less ``offset``."""
    blocks = file.blocks(info)
    if len(info.shape) == 1:
        whole = info.block.convert(blocks)["weight"].ravel()
        part = (whole if order is None else whole[order])[begin:end]
        return {"weight": part - np.float32(offset) if offset else part}
    rows = blocks[begin:end] if order is None else blocks[order[begin:end]]
    return info.block.convert(rows)


def _row_order(file: GGUFFile, info: TensorInfo, config: Mapping[str, Any]) -> Array | None:
    """Return, for each row as Hugging Face has it, its row in the file; None when they agree.

    Files of the family llama have the rows of each query and key head in the order of interleaved
    rotary pairs: file row 2 j + h of a head is row h * head_dim / 2 + j.
    """
    heads_by_name = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    match = _LAYER_TENSOR.fullmatch(info.name)
    if match is None or match[2] not in heads_by_name or not family_of(file).is_rope_interleaved:
        return None
    num_heads, head_dim = config[heads_by_name[match[2]]], config["head_dim"]
    if num_heads * head_dim != info.shape[0] or head_dim % 2:
        raise CheckpointError(
            f"{file.path}: {info.name} has {info.shape[0]} rows, {num_heads} heads of {head_dim}"
            " are expected.",
            remedy="Download the file again.",
        )
    rows = np.arange(info.shape[0]).reshape(num_heads, head_dim // 2, 2)
    return rows.transpose(0, 2, 1).ravel()
