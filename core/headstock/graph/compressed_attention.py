"""The layer of attention to a window of tokens, and to entries that stand for those before.

Shapes: T tokens, H heads, D features of a head, k entries chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.entries import last_tokens
from headstock.graph.module import Layer, Leaf
from headstock.graph.rotary import Rotary
from headstock.graph.source import Source
from headstock.graph.split import split_evenly
from headstock.ops.attention import StepBatch
from headstock.ops.compressed import (
    CompressedProvider,
    CompressedSpec,
    EntryPages,
    compressed_attention,
    rotate_last,
)
from headstock.ops.norm import rms_norm
from headstock.quantization.plan import Layout, Role


class CompressedAttention(Layer):
    """Normalises and rotates queries, stores tokens' vectors, attends, rotates outputs back.

    Reads ``leaf``, a sink for each head.

    Args:
        ctx: What to build with; the layer enters itself into ``ctx.attention_layers``.
        num_heads: H, over all ranks.
        head_dim: D.
        window: Tokens a query sees, itself included.
        rotary: The table; it rotates the last features.
        eps: Of the queries' norm, which has no weights.
        leaf: Checkpoint name of the sinks.
        rate: Tokens of an entry; 0: there are none.
        num_chosen: Most entries that a query reads, where they are chosen; 0: it reads all.

    Raises:
        ConfigError: The heads do not divide among the ranks.
        UnsupportedError: No provider computes it.
    """

    kv: Tensor
    """This layer's pages; the runner sets them when it has planned the memory."""

    def __init__(
        self,
        ctx: Context,
        num_heads: int,
        head_dim: int,
        *,
        window: int,
        rotary: Rotary,
        eps: float,
        leaf: str,
        rate: int = 0,
        num_chosen: int = 0,
    ) -> None:
        heads = split_evenly("attention", num_heads * head_dim, ctx.tp, unit=head_dim)
        count, self._first_head = heads.size // head_dim, heads.begin // head_dim
        self._heads, self._num_all_heads, self._leaf = (count, head_dim), num_heads, leaf
        spec = CompressedSpec(
            num_heads=count,
            head_dim=head_dim,
            window=window,
            rate=rate,
            num_chosen=num_chosen,
            scale=head_dim**-0.5,
            **ctx.cache_sizes(),
        )
        self.group = ctx.group(last_tokens(ctx, window))
        self.provider: CompressedProvider = ctx.cache_provider(compressed_attention, spec)
        where = ctx.device.torch_device
        self._ones_D = torch.ones(head_dim, dtype=ctx.dtype, device=where)
        self._sinks_H = torch.zeros(count, device=where)
        self._table_LE = rotary.cos_sin_LC
        self._norm = partial(ctx.ops.resolve(rms_norm, ctx.spec(size=head_dim)), eps=eps)
        turned = ctx.spec(head_dim=head_dim, rotary_size=rotary.rotary_dim)
        self._rotate = ctx.ops.resolve(rotate_last, turned)
        ctx.attention_layers.append(self)

    def forward(
        self,
        q_TC: Tensor,
        kv_TD: Tensor,
        batch: StepBatch,
        entries: EntryPages | None = None,
        chosen_Tk: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            q_TC: Queries of all heads, side by side. [T, H D]
            kv_TD: What is key and value of all heads, normalised. [T, D]
            batch: The step, which the provider has planned in the view of the layer's group.
            entries: Where entries are, where there are any.
            chosen_Tk: Which of them queries read, where they are chosen. [T, k]

        Returns:
            [T, H D]
        """
        batch = batch.groups[self.group]
        places = (batch.positions_T, self._table_LE)
        q_ND = self._norm(q_TC.view(-1, self._heads[1]), self._ones_D)
        q_THD = self._rotate(q_ND.view(-1, *self._heads), *places, is_inverse=False)
        kv_T1D = self._rotate(kv_TD.unsqueeze(1), *places, is_inverse=False)
        self.provider.write(kv_T1D[:, 0], self.kv, batch)
        out_THD = self.provider.run(
            q_THD, self._sinks_H, self.kv, batch, entries=entries, chosen_Tk=chosen_Tk
        )
        return self._rotate(out_THD, *places, is_inverse=True).flatten(1)

    def leaves(self) -> Sequence[Leaf]:
        """Return the sinks."""
        return [Leaf(self._leaf, (self._num_all_heads,), Role.BIAS)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the sinks are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy this rank's heads' sinks."""
        end = self._first_head + len(self._sinks_H)
        self._sinks_H.copy_(source.read(self._first_head, end)["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the sinks."""
        return self._sinks_H.nbytes
