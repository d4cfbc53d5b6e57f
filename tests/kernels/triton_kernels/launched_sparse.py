"""Launches what chooses tokens and blocks, what attends to them, and streams of hidden states."""

from __future__ import annotations

import torch
from launched_kernels import FakeDevice, batch_of

from headstock.ops.attention import CHOSEN_BLOCKS, AttentionSpec
from headstock.ops.block_indexer import BlockIndexerSpec
from headstock.ops.indexer import IndexerSpec
from headstock.ops.latent import LatentSpec
from headstock_triton.attention.chosen import BlockAttention
from headstock_triton.identities import Identities
from headstock_triton.latent.provider import PagedLatentAttention
from headstock_triton.sparse.provider import BlockIndexer, TokenIndexer
from headstock_triton.streams import Streams
from headstock_triton.target import Target

STEP = {"page_size": 64, "max_length": 4096, "max_rows": 64, "max_tokens": 512}


def compile_chosen_tokens(target: Target, dtype: torch.dtype, heads: int) -> None:
    """In the sizes of DeepSeek V3.2."""
    kinds = {"dtype": dtype, "kv_dtype": dtype, **STEP}
    index = IndexerSpec(
        num_heads=64, head_dim=128, rotary_size=64, is_interleaved=False, num_chosen=2048, **kinds
    )
    latent = LatentSpec(
        num_heads=heads,
        latent_size=512,
        rotary_size=64,
        key_size=128,
        value_size=128,
        scale=192**-0.5,
        num_chosen=2048,
        **kinds,
    )
    chooses = TokenIndexer(index, FakeDevice())
    attends = PagedLatentAttention(latent, FakeDevice())
    keys, latents = (torch.zeros(built.kv_shape(4), dtype=dtype) for built in (chooses, attends))
    for batch in (batch_of(1, 1, 0), batch_of(2, 512, 0)):
        tokens = batch.num_tokens
        chooses.plan(batch)
        attends.plan(batch)
        q, k = torch.zeros((tokens, 64, 128), dtype=dtype), torch.zeros((tokens, 128), dtype=dtype)
        table = torch.zeros((4096, 64))
        chosen = chooses.run(q, k, q[:, :, 0].contiguous(), table, keys, batch)
        q = torch.zeros((tokens, heads, 192), dtype=dtype)
        up = torch.zeros((heads, 256, 512), dtype=dtype)
        attends.run(q, up, latents, batch, chosen_Tk=chosen)


def compile_chosen_blocks(target: Target, dtype: torch.dtype) -> None:
    """In the sizes of MiniMax M3."""
    kinds = {"dtype": dtype, "kv_dtype": dtype, **STEP}
    index = BlockIndexerSpec(
        num_heads=4,
        head_dim=128,
        rotary_size=64,
        block_size=128,
        num_chosen=16,
        num_local=1,
        **kinds,
    )
    attention = AttentionSpec(
        num_heads=64,
        num_kv_heads=4,
        head_dim=128,
        scale=128**-0.5,
        features=frozenset({CHOSEN_BLOCKS}),
        block_size=128,
        **kinds,
    )
    chooses, attends = BlockIndexer(index, FakeDevice()), BlockAttention(attention, FakeDevice())
    keys, kv = (torch.zeros(built.kv_shape(4), dtype=dtype) for built in (chooses, attends))
    for batch in (batch_of(1, 1, 0), batch_of(2, 512, 0)):
        tokens = batch.num_tokens
        chooses.plan(batch)
        attends.plan(batch)
        q, k = torch.zeros((tokens, 4, 128), dtype=dtype), torch.zeros((tokens, 128), dtype=dtype)
        chosen = chooses.run(q, k, torch.zeros((4096, 64)), keys, batch)
        q = torch.zeros((tokens, 64, 128), dtype=dtype)
        attends.run(q, kv, batch, chosen_TKk=chosen)


def compile_streams(target: Target, dtype: torch.dtype) -> None:
    """In the sizes of Gemma 3n, and of LongCat Flash."""
    streams, identities, size = Streams(target), Identities(target), 2048
    x, y = torch.zeros((2, 4 * size), dtype=dtype), torch.zeros((2, size), dtype=dtype)
    streams.predict_streams(x, torch.zeros((2, 16), dtype=dtype), num_streams=4)
    streams.correct_streams(x, y, torch.zeros((2, 4), dtype=dtype))
    streams.add_to_others(x, y)
    streams.match_magnitudes(x, y)
    streams.mean_of_streams(x, num_streams=4)
    streams.keep_above(x, streams.sum_moments(x), width=4 * size, deviations=1.6)
    ids = torch.zeros(2, dtype=torch.int64)
    identities.known_ids(ids, size=262144)
    identities.put_rows(y, ids, torch.zeros((256, size), dtype=dtype), first=262144)
    experts, weights = torch.zeros((2, 12), dtype=torch.int32), torch.zeros((2, 12))
    identities.drop_identities(experts, num_experts=512)
    identities.add_identities(y, y, weights, experts, num_experts=512)
