"""Kernels of attention, as :mod:`headstock_npu_on_cpu.kernels` has the others."""

from __future__ import annotations

import torch
from torch import Tensor

from headstock_npu_on_cpu.refusals import FLOATS, need

CAUSAL, BAND = 3, 4
PER_TOKEN_AND_HEAD = 5


def npu_fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    actual_seq_lengths_kv: list[int] | None = None,
    key_antiquant_scale: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    block_table: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    block_size: int = 0,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    **others: object,
) -> tuple[Tensor, Tensor]:
    need(not any(isinstance(x, Tensor) for x in others.values()), "what is not made up here")
    need(input_layout == "BSND" and query.dim() == 4, "another layout than BSND")
    batch, queries, heads, size = query.shape
    kv_heads = num_key_value_heads or num_heads
    lengths = actual_seq_lengths_kv or []
    need(heads == num_heads and len(lengths) == batch, "heads and lengths")
    need(num_heads * size < 65535, "features of a query")
    has_many = queries > 1
    if key_antiquant_scale is not None and value_antiquant_scale is not None:
        need(key_antiquant_mode == value_antiquant_mode == PER_TOKEN_AND_HEAD, "modes of scales")
        need(not has_many, "several queries of a row with a scale for each token and head")
        need(key.is_contiguous() and value.is_contiguous(), "strided pages")
        need(size % 32 == 0 and block_size % 32 == 0, "sizes of pages in int8")
        scales = (key_antiquant_scale, value_antiquant_scale)
        key, value = (
            _widened(x, scale, query.dtype) for x, scale in zip((key, value), scales, strict=True)
        )
    if block_table is None:
        key, value, block_table = _as_pages(key, value, kv_heads, size)
        block_size = key.shape[1]
    else:
        need(0 < block_size <= 512 and block_size % (128 if has_many else 16) == 0, "block size")
    _check_pages(query, key, value, block_table, block_size, kv_heads, batch)
    need(atten_mask is None or (has_many and sparse_mode == CAUSAL), "a mask for one query")
    _check_mask(atten_mask, sparse_mode)
    ends = [queries * (row + 1) for row in range(batch)]
    rows = [(queries, end, length) for end, length in zip(ends, lengths, strict=True)]
    sees = (max(lengths), 0) if sparse_mode == CAUSAL else None
    out = _attend(query.flatten(0, 1), (key, value), rows, block_table, kv_heads, scale, sees)
    return out.view_as(query), query.new_zeros(1, dtype=torch.float32)


def npu_fused_infer_attention_score_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    block_table: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    num_query_heads: int = 1,
    num_key_value_heads: int = 0,
    softmax_scale: float = 1.0,
    pre_tokens: int = 2147483647,
    next_tokens: int = 2147483647,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    block_size: int = 0,
    **others: object,
) -> tuple[Tensor, Tensor]:
    need(not any(isinstance(x, Tensor) for x in others.values()), "what is not made up here")
    need(input_layout == "TND" and query.dim() == 3, "another layout than TND")
    ends, lengths = actual_seq_qlen or [], actual_seq_kvlen or []
    counts = [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    need(0 < len(ends) <= 4096 and len(lengths) == len(ends), "a length for each row")
    need(ends[-1] == len(query) and min(counts) > 0, "ends of queries")
    need(query.shape[1] == num_query_heads, "heads")
    kv_heads = num_key_value_heads or num_query_heads
    _check_pages(query, key, value, block_table, block_size, kv_heads, len(ends))
    need(block_size % 16 == 0 and 0 < block_size <= 1024, "block size")
    _check_mask(atten_mask, sparse_mode)
    need(sparse_mode != 0 or max(counts) == 1, "several queries of a row that see each other")
    if query_rope is not None and key_rope is not None:
        _check_latents(query, query_rope, key_rope, num_query_heads, kv_heads, key)
        need(learnable_sink is None, "sinks of latents")
        query = torch.cat((query, query_rope), dim=-1)
        key = torch.cat((key, key_rope), dim=-1)
    else:
        need(query.shape[2] in (64, 128), "head size")
    if learnable_sink is not None:
        need(learnable_sink.shape == (num_query_heads,), "a sink for each head")
        need(learnable_sink.dtype in (torch.bfloat16, torch.float32), "dtype of sinks")
        need(learnable_sink.dtype == query.dtype, "dtype of sinks")
    sees = None
    if sparse_mode:
        need(sparse_mode == CAUSAL or (pre_tokens >= 0 and next_tokens == 0), "a band")
        sees = (pre_tokens if sparse_mode == BAND else max(lengths), 0)
    rows = list(zip(counts, ends, lengths, strict=True))
    args = (query, (key, value), rows, block_table, kv_heads, softmax_scale, sees)
    return _attend(*args, learnable_sink), query.new_zeros(1, dtype=torch.float32)


def _attend(
    query: Tensor,
    pages: tuple[Tensor, Tensor],
    rows: list[tuple[int, int, int]],
    block_table: Tensor | None,
    kv_heads: int,
    scale: float,
    sees: tuple[int, int] | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend row by row: queries, where they end, tokens. Reads nothing that no query sees."""
    assert block_table is not None, "checked before"
    out = query.new_empty(*query.shape[:2], pages[1].shape[2] // kv_heads)
    block_size = pages[0].shape[1]
    for row, (queries, end, length) in enumerate(rows):
        need(queries <= length <= block_table.shape[1] * block_size, f"length {length}")
        places = torch.arange(length - queries, length)[:, None]
        first = 0 if sees is None else max(0, length - queries - sees[0])
        tokens = torch.arange(first, length)
        slots = block_table[row].long()[tokens // block_size] * block_size + tokens % block_size
        k, v = (
            x.flatten(0, 1)[slots].unflatten(1, (kv_heads, -1)).float().transpose(0, 1)
            for x in pages
        )
        q = query[end - queries : end].float().transpose(0, 1).unflatten(0, (kv_heads, -1))
        scores = q @ k.unsqueeze(1).transpose(2, 3) * scale
        if sees is not None:
            hidden = (tokens > places + sees[1]) | (tokens < places - sees[0])
            scores = scores.masked_fill(hidden, -torch.inf)
        if sinks is not None:
            column = sinks.float().view(kv_heads, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, column), dim=-1)
        probs = scores.softmax(-1)[..., : len(tokens)]
        out[end - queries : end] = (probs @ v.unsqueeze(1)).flatten(0, 1).transpose(0, 1)
    return out


def _widened(whole: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return pages [block, token, features] in int8 as numbers; scales are [block, head, token]."""
    need(whole.dtype == torch.int8 and scale.dtype == torch.float32, "dtypes of pages in int8")
    need(scale.is_contiguous() and scale.dim() == 3, "strided scales")
    need(whole.shape[:2] == (scale.shape[0], scale.shape[2]), "a scale for each token and head")
    by_head = whole.unflatten(2, (scale.shape[1], -1)) * scale.transpose(1, 2).unsqueeze(-1)
    return by_head.flatten(2).to(dtype)


def _as_pages(
    key: Tensor, value: Tensor, kv_heads: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys and values [row, token, head, feature] as a page a row, and the table of them."""
    need(key.dim() == 4 and key.shape[2:] == (kv_heads, size), "keys that are not BSND")
    need(key.is_contiguous() and value.is_contiguous(), "strided keys")
    table = torch.arange(len(key), dtype=torch.int32).unsqueeze(1)
    return key.flatten(2), value.flatten(2), table


def _check_pages(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_table: Tensor | None,
    block_size: int,
    kv_heads: int,
    rows: int,
) -> None:
    heads, size = query.shape[-2:]
    need(heads % kv_heads == 0 and (heads // kv_heads <= 64 or size == 512), "heads")
    need(heads <= 256 and size <= 512 and size % 16 == 0, "head size")
    need(all(x.is_contiguous() for x in (query, key, value)), "strided tensors")
    need(query.dtype == key.dtype == value.dtype and query.dtype in FLOATS, "dtypes")
    need(key.shape == value.shape and key.dim() == 3, "pages that are not [block, token, features]")
    need(key.shape[2] == kv_heads * size <= 65535, "features of a page")
    need(block_table is not None and block_table.dtype == torch.int32, "no table of blocks")
    assert block_table is not None, "checked above"
    need(block_table.is_contiguous() and block_table.dim() == 2, "strided table of blocks")
    need(block_table.shape[0] == rows, "a table for each row")
    need(block_size == key.shape[1], "blocks of another size")


def _check_latents(
    query: Tensor, query_rope: Tensor, key_rope: Tensor, heads: int, kv_heads: int, key: Tensor
) -> None:
    need(query_rope.is_contiguous() and key_rope.is_contiguous(), "strided tensors")
    need(query.dtype == query_rope.dtype == key_rope.dtype, "dtypes of rotated parts")
    need(query.shape[2] == 512 and kv_heads == 1, "sizes of latents")
    need(heads in (1, 2, 4, 8, 16, 32, 64, 128), "heads of latents")
    need(query_rope.shape == (*query.shape[:2], 64), "rotated queries")
    need(key_rope.shape == (*key.shape[:2], 64), "rotated keys")


def _check_mask(atten_mask: Tensor | None, sparse_mode: int) -> None:
    if atten_mask is None:
        need(sparse_mode == 0, "a mask is missing")
        return
    need(sparse_mode in (CAUSAL, BAND), "a mask that nobody asked for")
    need(atten_mask.dtype == torch.bool and atten_mask.shape == (2048, 2048), "the causal mask")
    edge = atten_mask[:9, :9]
    need(torch.equal(edge, torch.ones(9, 9, dtype=torch.bool).triu(1)), "what is causal")
