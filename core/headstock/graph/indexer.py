"""The module that chooses which tokens attention reads.

Shapes: T tokens, D hidden size, Q features of queries' latents, H heads of the indexer, X features
of each, k tokens chosen.
"""

from __future__ import annotations

from torch import Tensor

from headstock.graph.context import Context, Retention
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm
from headstock.graph.rotary import Rotary
from headstock.ops.attention import StepBatch
from headstock.ops.indexer import IndexerProvider, IndexerSpec, index_tokens
from headstock.quantization.plan import Role

KEY_EPS = 1e-6
"""Of the norm of keys, whatever the configuration's ``rms_norm_eps``."""


class TokenIndexer(Module):
    """Scores every cached token with small heads, and returns the best ones' positions.

    Reads ``wq_b.weight``, ``wk.weight``, ``k_norm.weight``, ``k_norm.bias`` and
    ``weights_proj.weight``. Every rank computes all of it, since all must choose the same tokens.

    Args:
        ctx: What to build with; the module enters itself into ``ctx.attention_layers``.
        hidden_size: D.
        latent_size: Q.
        num_heads: H.
        head_dim: X.
        rotary: The table that attention has; it rotates the first features of queries and keys.
        is_interleaved: Which of these make pairs: neighbours, or halves.
        num_chosen: Most tokens that a query chooses.

    Raises:
        UnsupportedError: No provider computes it.
    """

    kv: Tensor
    """Its pages; the runner sets them when it has planned the memory."""

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        latent_size: int,
        *,
        num_heads: int,
        head_dim: int,
        rotary: Rotary,
        is_interleaved: bool,
        num_chosen: int,
    ) -> None:
        self._heads = (num_heads, head_dim)
        self.queries = Linear(ctx, latent_size, {"wq_b": num_heads * head_dim}, split="none")
        self.keys = Linear(ctx, hidden_size, {"wk": head_dim}, split="none")
        self.key_norm = LayerNorm(ctx, head_dim, leaf="k_norm", eps=KEY_EPS)
        # Like a router's: a near tie would go the other way if it were narrower.
        weights = {"weights_proj": num_heads}
        self.weights = Linear(ctx, hidden_size, weights, split="none", role=Role.ROUTER)
        self._table_LE = rotary.cos_sin_LC
        spec = IndexerSpec(
            num_heads=num_heads,
            head_dim=head_dim,
            rotary_size=rotary.rotary_dim,
            is_interleaved=is_interleaved,
            num_chosen=num_chosen,
            **ctx.cache_sizes(),
        )
        self.group = ctx.group(Retention("full"))
        self.provider: IndexerProvider = ctx.cache_provider(index_tokens, spec)
        ctx.attention_layers.append(self)

    def forward(self, x_TD: Tensor, q_TQ: Tensor, batch: StepBatch) -> Tensor:
        """Choose.

        Args:
            x_TD: Normalised hidden states. [T, D]
            q_TQ: Latents that queries are made of, normalised. [T, Q]
            batch: The step, which the provider has planned in the view of the layer's group.

        Returns:
            As :meth:`headstock.ops.indexer.IndexerProvider.run` does. int32. [T, k]
        """
        batch = batch.groups[self.group]
        q_THX = self.queries(q_TQ).unflatten(1, self._heads)
        k_TX, _ = self.key_norm(self.keys(x_TD), None)
        weights_TH = self.weights(x_TD)
        return self.provider.run(q_THX, k_TX, weights_TH, self._table_LE, self.kv, batch)
