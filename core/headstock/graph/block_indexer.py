"""The module that chooses which blocks of tokens attention reads.

Shapes: T tokens, D hidden size, H heads of the indexer, X features of each, k blocks chosen.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from headstock.graph.context import Context, Retention
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import AngleTable
from headstock.ops.attention import StepBatch
from headstock.ops.block_indexer import BlockIndexerProvider, BlockIndexerSpec, index_blocks


class BlockIndexer(Module):
    """Scores every cached token with a small head a key/value head, and returns the best blocks.

    Reads ``q_proj.weight``, ``k_proj.weight``, ``q_norm.weight`` and ``k_norm.weight``. A rank has
    the heads of its own key/value heads.

    Args:
        ctx: What to build with; the module enters itself into ``ctx.attention_layers``.
        hidden_size: D.
        num_heads: H, over all ranks: as many as key/value heads of attention.
        head_dim: X.
        rotary: The table that attention has; it rotates the first features of queries and keys.
        eps: Of the norms of queries and keys.
        is_zero_centered: Whether the checkpoint has how far their weights are from 1.
        block_size: Tokens of a block.
        num_chosen: Most blocks that a head of a query chooses.
        num_local: How many of them are the last ones up to the query's own.

    Raises:
        ConfigError: The heads do not divide among the ranks.
        UnsupportedError: No provider computes it.
    """

    kv: Tensor
    """Its pages; the runner sets them when it has planned the memory."""

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        *,
        num_heads: int,
        head_dim: int,
        rotary: AngleTable,
        eps: float,
        is_zero_centered: bool,
        block_size: int,
        num_chosen: int,
        num_local: int,
    ) -> None:
        heads = Part(num_heads * head_dim, unit=head_dim, is_shared=True)
        self._head_dim = head_dim
        self.queries = Linear(ctx, hidden_size, {"q_proj": heads})
        self.keys = Linear(ctx, hidden_size, {"k_proj": head_dim}, split="none")
        centered = {"eps": eps, "is_zero_centered": is_zero_centered}
        self.query_norm = RMSNorm(ctx, head_dim, leaf="q_norm", **centered)
        self.key_norm = RMSNorm(ctx, head_dim, leaf="k_norm", **centered)
        self._table_LE = rotary.cos_sin_LC
        # Keys are not narrowed with those of attention: they decide what is read at all.
        sizes: dict[str, Any] = ctx.cache_sizes() | {"kv_dtype": ctx.dtype}
        spec = BlockIndexerSpec(
            num_heads=max(1, num_heads // ctx.tp.size),
            head_dim=head_dim,
            rotary_size=rotary.rotary_dim,
            block_size=block_size,
            num_chosen=num_chosen,
            num_local=num_local,
            **sizes,
        )
        self.group = ctx.group(Retention("full"))
        self.provider: BlockIndexerProvider = ctx.cache_provider(index_blocks, spec)
        ctx.attention_layers.append(self)

    def forward(self, x_TD: Tensor, batch: StepBatch) -> Tensor:
        """Choose, for each token of ``x_TD``, the normalised hidden states. int32. [T, H, k]"""
        batch = batch.groups[self.group]
        q_TX, k_TX = self.queries(x_TD), self.keys(x_TD)
        q_NX, _ = self.query_norm(q_TX.view(-1, self._head_dim), None)
        k_TX, _ = self.key_norm(k_TX, None)
        q_THX = q_NX.view(len(x_TD), -1, self._head_dim)
        return self.provider.run(q_THX, k_TX, self._table_LE, self.kv, batch)
