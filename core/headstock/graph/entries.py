"""Layers that make entries of stretches of tokens, and choose which of them attention reads.

Shapes: T tokens, D hidden size, Q features of queries' latents, X features of an entry, F of what a
token adds to one, m tokens of an entry, k entries chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from headstock.errors import ConfigError
from headstock.graph.context import Context, Retention
from headstock.graph.linear import Linear
from headstock.graph.module import Layer, Leaf, Module
from headstock.graph.rotary import Rotary
from headstock.graph.source import Source
from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.compressed import (
    EntryPages,
    choose_entries,
    compress_tokens,
    entries_a_page,
    rotate_last,
)
from headstock.quantization.plan import Layout, Role

PLAIN_TAG = "pages-td"
"""A buffer is [pages, a page's tokens or entries, features]."""


class PlainPages:
    """How pages lie that hold features as they are: nothing is planned of them.

    Args:
        a_page: Tokens or entries a page holds.
        size: Features of each.
        page_size: Tokens a page stands for.
        dtype: Of the features.
    """

    def __init__(self, a_page: int, size: int, page_size: int, dtype: torch.dtype) -> None:
        self._shape = (a_page, size)
        self.page_format = PageFormat(tag=PLAIN_TAG, page_sizes=(page_size,), dtype=dtype)
        self.graph_key: tuple[int, ...] = ()

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, a page's, features]."""
        return (num_pages, *self._shape)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing."""


class KeptPages:
    """Pages of one layer that it keeps something in, entered into ``ctx.attention_layers``.

    Args:
        ctx: What to build with.
        retention: What is kept of a request.
        a_page: Tokens or entries a page holds.
        size: Features of each.
        dtype: Of the features.
    """

    kv: Tensor
    """The pages; the runner sets them when it has planned the memory."""

    def __init__(
        self, ctx: Context, retention: Retention, a_page: int, size: int, dtype: torch.dtype
    ) -> None:
        self.group = ctx.group(retention)
        key = (PLAIN_TAG, a_page, size, dtype)
        if key not in ctx.providers:
            ctx.providers[key] = PlainPages(a_page, size, ctx.page_size, dtype)
        self.provider = ctx.providers[key]
        ctx.attention_layers.append(self)


def last_tokens(ctx: Context, count: int) -> Retention:
    """Return what keeps a request's last ``count`` tokens: all, where no request is longer."""
    if count >= ctx.limits.max_length:
        return Retention("full")
    return Retention("window", count)


class Entries(Layer):
    """Keeps what entries are made of while they are not complete, and the entries.

    Reads ``ape``, what is added to gates by place, in float32, and ``norm.weight``.

    Args:
        ctx: What to build with, once the page size is known.
        size: X.
        rate: m.
        is_overlapped: Whether the m tokens before those of an entry count, too: F is then 2 X.
        rotary: The table; it rotates the last features.
        eps: Of the norm.
        dtype: Of the entries' pages.

    Raises:
        ConfigError: Neither the page size nor the rate divides the other.
    """

    def __init__(
        self,
        ctx: Context,
        size: int,
        *,
        rate: int,
        is_overlapped: bool,
        rotary: Rotary,
        eps: float,
        dtype: torch.dtype,
    ) -> None:
        page_size = ctx.page_size
        if page_size % rate and rate % page_size:
            raise ConfigError(
                f"page_size is {page_size}, and layers make an entry of every {rate} tokens:"
                " neither divides the other.",
                remedy=f"Set --page-size to a divisor or a multiple of {rate}.",
            )
        self.rate, width = rate, size * (2 if is_overlapped else 1)
        a_page = entries_a_page(page_size, rate)
        waiting = last_tokens(ctx, rate * (2 if is_overlapped else 1))
        self._waiting = KeptPages(ctx, waiting, page_size, 2 * width, ctx.dtype)
        self._entries = KeptPages(ctx, Retention("full"), a_page, size, dtype)
        where = ctx.device.torch_device
        self._bias_mF = torch.zeros((rate, width), device=where)
        self._norm_X = torch.ones(size, dtype=ctx.dtype, device=where)
        self._table_LE = rotary.cos_sin_LC
        spec = ctx.spec(
            head_dim=size, rate=rate, rotary_size=rotary.rotary_dim, page_size=page_size
        )
        self._compress = partial(ctx.ops.resolve(compress_tokens, spec), eps=eps)

    def forward(self, waiting_TG: Tensor, batch: StepBatch) -> EntryPages:
        """Store the step's keys and gates, [T, 2 F], and make what entries they complete.

        Returns:
            Where entries are read from.
        """
        waiting, entries = self._waiting, self._entries
        view = batch.groups[entries.group]
        self._compress(
            waiting_TG,
            self._bias_mF,
            self._norm_X,
            self._table_LE,
            waiting.kv,
            batch.groups[waiting.group],
            entries.kv,
            view,
        )
        return EntryPages(entries.kv, view)

    def leaves(self) -> Sequence[Leaf]:
        """Return both weights."""
        return [
            Leaf("ape", tuple(self._bias_mF.shape), Role.BIAS),
            Leaf("norm.weight", tuple(self._norm_X.shape), Role.SCALE),
        ]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weights are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy a weight."""
        weight = self._bias_mF if name == "ape" else self._norm_X
        weight.copy_(source.read(0, source.shape[0])["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of both weights."""
        return self._bias_mF.nbytes + self._norm_X.nbytes


class Compressor(Module):
    """Makes entries of hidden states: reads ``wkv``, ``wgate``, and what :class:`Entries` does.

    Every rank makes all of them. Arguments are those of :class:`Entries`, behind the hidden size.
    """

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        size: int,
        *,
        rate: int,
        is_overlapped: bool,
        rotary: Rotary,
        eps: float,
        dtype: torch.dtype,
    ) -> None:
        width = size * (2 if is_overlapped else 1)
        self.project = Linear(ctx, hidden_size, {"wkv": width, "wgate": width}, split="none")
        self.entries = Entries(
            ctx,
            size,
            rate=rate,
            is_overlapped=is_overlapped,
            rotary=rotary,
            eps=eps,
            dtype=dtype,
        )

    def forward(self, x_TD: Tensor, batch: StepBatch) -> EntryPages:
        """Return where entries are read from, those of the step among them."""
        return self.entries(self.project(x_TD), batch)


class EntryIndexer(Module):
    """Chooses the entries that attention reads, by scores of small entries of the same tokens.

    Reads ``wq_b``, ``weights_proj``, and its own ``compressor``. Every rank computes all of it.

    Args:
        ctx: What to build with, once the page size is known.
        hidden_size: D.
        latent_size: Q.
        num_heads: Of its queries.
        head_dim: X.
        num_chosen: Most entries that a query chooses.
        rate: m.
        rotary: The table.
        eps: Of the norm of its entries.
    """

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        latent_size: int,
        *,
        num_heads: int,
        head_dim: int,
        num_chosen: int,
        rate: int,
        rotary: Rotary,
        eps: float,
    ) -> None:
        self._heads = (num_heads, head_dim)
        self.queries = Linear(ctx, latent_size, {"wq_b": num_heads * head_dim}, split="none")
        # Like a router's: a near tie would go the other way if it were narrower.
        weights = {"weights_proj": num_heads}
        self.weights = Linear(ctx, hidden_size, weights, split="none", role=Role.ROUTER)
        # Nor are its entries narrowed with those of attention.
        self.compressor = Compressor(
            ctx,
            hidden_size,
            head_dim,
            rate=rate,
            is_overlapped=True,
            rotary=rotary,
            eps=eps,
            dtype=ctx.dtype,
        )
        self._table_LE = rotary.cos_sin_LC
        turned = ctx.spec(head_dim=head_dim, rotary_size=rotary.rotary_dim)
        self._rotate = partial(ctx.ops.resolve(rotate_last, turned), is_inverse=False)
        spec = ctx.spec(
            num_heads=num_heads,
            head_dim=head_dim,
            rate=rate,
            num_chosen=num_chosen,
            page_size=ctx.page_size,
        )
        self._choose = partial(
            ctx.ops.resolve(choose_entries, spec),
            page_size=ctx.page_size,
            rate=rate,
            num_chosen=num_chosen,
        )

    def forward(self, x_TD: Tensor, q_TQ: Tensor, batch: StepBatch) -> Tensor:
        """Choose.

        Args:
            x_TD: Normalised hidden states. [T, D]
            q_TQ: Latents that queries are made of, normalised. [T, Q]
            batch: The step.

        Returns:
            As :func:`headstock.ops.compressed.choose_entries` does. int32. [T, k]
        """
        entries = self.compressor(x_TD, batch)
        q_THX = self.queries(q_TQ).unflatten(1, self._heads)
        q_THX = self._rotate(q_THX, batch.positions_T, self._table_LE)
        return self._choose(q_THX, self.weights(x_TD), entries.pages, entries.batch)
