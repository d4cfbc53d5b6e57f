"""Norms of queries and keys over all heads together. Shapes: T tokens, C columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.graph.split import split_evenly, split_or_replicate
from headstock.ops.wide_norm import norm_queries_and_keys, sum_squares
from headstock.quantization.plan import Layout, Role


class WideNorm(Layer):
    """Divides all queries of a token by their root mean square, and all its keys by theirs.

    Ranks add up their squares. Reads ``q_norm.weight`` and ``k_norm.weight``, over all heads.

    Args:
        ctx: What to build with.
        num_heads: Query heads, over all ranks.
        num_kv_heads: Key/value heads; with fewer than ranks, several ranks hold the same.
        head_dim: Features of a head.
        eps: Added to the means of squares. Dimensionless.
    """

    def __init__(
        self, ctx: Context, num_heads: int, num_kv_heads: int, head_dim: int, *, eps: float
    ) -> None:
        self._tp, self._eps = ctx.tp, eps
        widths = {"q_norm": num_heads * head_dim, "k_norm": num_kv_heads * head_dim}
        self._widths = widths
        self._spans = {
            "q_norm": split_evenly("q_norm", widths["q_norm"], ctx.tp, unit=head_dim),
            "k_norm": split_or_replicate("k_norm", widths["k_norm"], ctx.tp, unit=head_dim),
        }
        made = {"dtype": ctx.dtype, "device": ctx.device.torch_device}
        self._weights = {n: torch.ones(span.size, **made) for n, span in self._spans.items()}
        self._squares = ctx.ops.resolve(sum_squares, ctx.spec())
        self._norm = ctx.ops.resolve(norm_queries_and_keys, ctx.spec())

    def forward(self, qkv_TC: Tensor) -> Tensor:
        """Return the columns with queries and keys normalised. [T, C]"""
        q, k = self._spans["q_norm"].size, self._spans["k_norm"].size
        squares_T2 = self._squares(qkv_TC, q_size=q, k_size=k)
        return self._norm(
            qkv_TC,
            self._tp.all_reduce(squares_T2),
            self._weights["q_norm"],
            self._weights["k_norm"],
            q_width=q * self._tp.size,
            k_width=k * self._tp.size,
            eps=self._eps,
        )

    def leaves(self) -> Sequence[Leaf]:
        """Return both weights."""
        return [Leaf(f"{n}.weight", (width,), Role.SCALE) for n, width in self._widths.items()]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weights are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy this rank's heads' share of a weight."""
        kind = name.removesuffix(".weight")
        span = self._spans[kind]
        self._weights[kind].copy_(source.read(span.begin, span.end)["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of both weights."""
        return sum(weight.nbytes for weight in self._weights.values())
