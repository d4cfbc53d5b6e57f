"""Launches what attends to entries, makes and chooses them, and residual streams around it."""

from __future__ import annotations

import torch
from launched_kernels import FakeDevice, batch_of
from launched_sparse import STEP

from headstock.ops.compressed import CompressedSpec, EntryPages, entries_a_page
from headstock.ops.routing import SQRT_SOFTPLUS, Routing
from headstock_triton.compressed.entries import Entries
from headstock_triton.compressed.provider import EntryAttention
from headstock_triton.hyper_connections import HyperConnections
from headstock_triton.scores import Scores
from headstock_triton.target import Target

LAYERS = ((0, 0), (4, 512), (128, 0))
"""Tokens of an entry, and entries chosen, in the kinds of layers of DeepSeek V4."""


def compile_entries(target: Target, dtype: torch.dtype, heads: int) -> None:
    """In the sizes of DeepSeek V4."""
    size = 256 if target.has_small_warps else 512
    for rate, num_chosen in LAYERS:
        spec = CompressedSpec(
            num_heads=heads,
            head_dim=size,
            window=128,
            scale=size**-0.5,
            rate=rate,
            num_chosen=num_chosen,
            dtype=dtype,
            kv_dtype=dtype,
            **STEP,
        )
        attends = EntryAttention(spec, FakeDevice())
        kv, sinks = torch.zeros(attends.kv_shape(4), dtype=dtype), torch.zeros(heads)
        for batch in (batch_of(1, 1, 0), batch_of(2, 512, 0)):
            q = torch.zeros((batch.num_tokens, heads, size), dtype=dtype)
            attends.write(q[:, 0], kv, batch)
            entries, chosen = None, None
            if rate:
                pages = torch.zeros((4, entries_a_page(64, rate), size), dtype=dtype)
                entries = EntryPages(pages, batch)
            if num_chosen:
                chosen = torch.zeros((batch.num_tokens, num_chosen), dtype=torch.int32)
            attends.run(q, sinks, kv, batch, entries=entries, chosen_Tk=chosen)


def compile_making_of_entries(target: Target, dtype: torch.dtype) -> None:
    """In the sizes of DeepSeek V4: entries that attention reads, and those of the indexer."""
    entries, table = Entries(target), torch.zeros((4096, 64))
    for rate, size, halves in ((4, 512, 2), (128, 512, 1), (4, 128, 2)):
        width = size * halves
        waiting = torch.zeros((4, 64, 2 * width), dtype=dtype)
        pages = torch.zeros((4, entries_a_page(64, rate), size), dtype=dtype)
        bias, norm = torch.zeros((rate, width)), torch.zeros(size, dtype=dtype)
        batch = batch_of(2, 16, 0)
        new = torch.zeros((batch.num_tokens, 2 * width), dtype=dtype)
        entries.compress_tokens(new, bias, norm, table, waiting, batch, pages, batch, eps=1e-6)
    for batch in (batch_of(1, 1, 0), batch_of(2, 512, 0)):
        q = torch.zeros((batch.num_tokens, 64, 128), dtype=dtype)
        weights, pages = q[:, :, 0].contiguous(), torch.zeros((4, 16, 128), dtype=dtype)
        known = {"page_size": 64, "rate": 4, "num_chosen": 512}
        entries.choose_entries(q, weights, pages, batch, **known)
        for is_inverse in (False, True):
            entries.rotate_last(q, batch.positions_T, table, is_inverse=is_inverse)


def compile_hyper_connections(target: Target, dtype: torch.dtype) -> None:
    """In the sizes of DeepSeek V4, and its routing."""
    connections, streams, size = HyperConnections(target), 4, 4096
    eps = {"norm_eps": 1e-6, "eps": 1e-6}
    for tokens in (1, 64):
        x = connections.spread_streams(
            torch.zeros((tokens, size), dtype=dtype), num_streams=streams
        )
        mix, base, scale = torch.zeros((24, x.shape[1])), torch.zeros(24), torch.zeros(3)
        y, *mixing = connections.collapse_streams(
            x, mix, base, scale, num_streams=streams, num_rounds=20, **eps
        )
        connections.expand_streams(x, y, *mixing)
        connections.merge_streams(x, mix[:4], base[:4], scale[:1], **eps)
    logits, ids = torch.zeros((2, 256), dtype=dtype), torch.zeros(2, dtype=torch.int64)
    routing = Routing(k=6, scores=SQRT_SOFTPLUS, is_normalized=True, factor=1.5)
    table = torch.zeros((1024, 6), dtype=torch.int32)
    Scores(target).route_by_token(logits, ids, table, routing=routing)
    Scores(target).route_experts(logits, torch.zeros(256), routing=routing)
