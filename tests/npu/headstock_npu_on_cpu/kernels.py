"""The kernels: CPU implementations of torch-npu's schemas that say no where an NPU does.

What they refuse and compute is what the docstrings of torch-npu 2.13 say.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from headstock_npu_on_cpu import products
from headstock_npu_on_cpu.refusals import FLOATS, need

SCHEMAS = Path(__file__).parent / "schemas.txt"


@cache
def install() -> None:
    """Register the schemas, and what computes them here."""
    library = torch.library.Library("npu", "DEF")
    for line in SCHEMAS.read_text().splitlines():
        if not line.startswith("#"):
            schema = line.removeprefix("npu::")
            library.define(schema)
            name = schema.partition("(")[0]
            library.impl(name, globals().get(name) or getattr(products, name), "CPU")
    _kept.append(library)


_kept: list[torch.library.Library] = []


def npu_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    need(input.dtype in FLOATS and gamma.dtype == input.dtype, "dtypes of a norm")
    x32 = input.float()
    rstd = torch.rsqrt(x32.square().mean(-1, keepdim=True) + epsilon)
    return (x32 * rstd * gamma.float()).to(input.dtype), rstd


def npu_add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    need(x1.shape == x2.shape and x1.dtype == x2.dtype, "summands differ")
    total = x1 + x2
    return (*npu_rms_norm(total, gamma, epsilon), total)


def npu_swiglu(input: Tensor, dim: int = -1) -> Tensor:
    need(input.dtype in FLOATS and input.shape[dim] % 2 == 0, "odd features of swiglu")
    gate, up = input.float().chunk(2, dim)
    return (torch.nn.functional.silu(gate) * up).to(input.dtype)


def npu_rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    need(input.dim() == 4 and r1.shape == r2.shape, "rotation of something not BSND")
    batch, length, heads, size = input.shape
    need(r1.shape == (1, length, 1, size), f"angles of shape {tuple(r1.shape)}")
    need(r1.dtype == r2.dtype == input.dtype, "angles of another dtype")
    need(size % 2 == 0 and size < 896 and batch * heads < 1000, "sizes of a rotation")
    x, cos, sin = input.float(), r1.float(), r2.float()
    if rotary_mode == "half":
        first, second = x.chunk(2, -1)
        other = torch.cat((-second, first), -1)
    else:
        need(rotary_mode == "interleave", rotary_mode)
        other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return (x * cos + other * sin).to(input.dtype)


def npu_scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> None:
    need(cache_mode == "Norm", "pages in NZ format")
    tensors = (key, value, key_cache, value_cache, slot_mapping)
    need(all(x.is_contiguous() for x in tensors), "strided tensors")
    need(len({x.dtype for x in tensors[:4]}) == 1, "dtypes of pages")
    need(key.dim() == 3 and key_cache.dim() == 4 and slot_mapping.dim() == 1, "dimensions")
    need(len(slot_mapping) == len(key), "a slot for each token")
    for new, cached in ((key, key_cache), (value, value_cache)):
        need(new.shape[1:] == cached.shape[2:], "heads of pages")
        cached.view(-1, *cached.shape[2:]).index_copy_(0, slot_mapping.long(), new)


def npu_fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    actual_seq_lengths_kv: list[int] | None = None,
    block_table: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    block_size: int = 0,
    **others: object,
) -> tuple[Tensor, Tensor]:
    _check_attention(query, key, value, atten_mask, block_table, sparse_mode, block_size)
    need(not any(isinstance(x, Tensor) for x in others.values()), "what is not made up here")
    need(input_layout == "BSND" and query.dim() == 4, "another layout than BSND")
    batch, queries, heads, size = query.shape
    kv_heads = num_key_value_heads or num_heads
    need(heads == num_heads and heads % kv_heads == 0 and heads // kv_heads <= 64, "heads")
    need(num_heads <= 256 and size <= 512 and size % 16 == 0, "head size")
    need(num_heads * size < 65535 and key.shape[2] == kv_heads * size, "features of a page")
    assert block_table is not None, "checked above"
    need(actual_seq_lengths_kv is not None and len(actual_seq_lengths_kv) == batch, "lengths")
    assert actual_seq_lengths_kv is not None, "checked above"
    out = torch.empty_like(query)
    for row, length in enumerate(actual_seq_lengths_kv):
        num_blocks = -(-length // block_size)
        need(0 < length <= block_table.shape[1] * block_size, f"length {length}")
        blocks = block_table[row, :num_blocks].long()
        k, v = (
            x[blocks].view(-1, kv_heads, size)[:length].float().transpose(0, 1)
            for x in (key, value)
        )
        q = query[row].float().transpose(0, 1).unflatten(0, (kv_heads, -1))
        scores = q @ k.unsqueeze(1).transpose(2, 3) * scale
        if sparse_mode == 3:
            places = torch.arange(length - queries, length)[:, None]
            scores = scores.masked_fill(torch.arange(length) > places, -torch.inf)
        probs = scores.softmax(-1)
        out[row] = (probs @ v.unsqueeze(1)).flatten(0, 1).transpose(0, 1).to(out.dtype)
    return out, query.new_zeros(1, dtype=torch.float32)


def _check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    atten_mask: Tensor | None,
    block_table: Tensor | None,
    sparse_mode: int,
    block_size: int,
) -> None:
    need(all(x.is_contiguous() for x in (query, key, value)), "strided tensors")
    need(query.dtype == key.dtype == value.dtype and query.dtype in FLOATS, "dtypes")
    need(key.shape == value.shape and key.dim() == 3, "pages that are not [block, token, features]")
    need(block_table is not None and block_table.dtype == torch.int32, "no table of blocks")
    assert block_table is not None, "checked above"
    need(block_table.is_contiguous() and block_table.dim() == 2, "strided table of blocks")
    need(block_table.shape[0] == query.shape[0], "a table for each row")
    need(block_size == key.shape[1], "blocks of another size")
    has_many = query.shape[1] > 1
    unit = 128 if has_many else 16
    need(block_size % unit == 0 and 0 < block_size <= 512, f"blocks of {block_size}")
    if atten_mask is None:
        need(sparse_mode == 0, "a mask is missing")
        return
    need(has_many and sparse_mode == 3, "a mask for one query")
    need(atten_mask.dtype == torch.bool and atten_mask.shape == (2048, 2048), "the causal mask")
    edge = atten_mask[:9, :9]
    need(torch.equal(edge, torch.ones(9, 9, dtype=torch.bool).triu(1)), "what is causal")
