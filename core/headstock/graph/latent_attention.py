"""The layer of latent attention.

Shapes: T tokens, H heads, C features of a latent, E features of the rotated key, N features of a
head's key that are made of the latent, V features of its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headstock.graph.context import Context, Retention
from headstock.graph.module import Layer, Leaf
from headstock.graph.rotary import Rotary
from headstock.graph.source import Source, read_span
from headstock.graph.split import split_evenly
from headstock.ops.attention import StepBatch, page_format_of
from headstock.ops.features import scale_by_position
from headstock.ops.latent import (
    LatentProvider,
    LatentSpec,
    latent_attention,
    rotate_and_write_latent,
)
from headstock.quantization.convert import convert
from headstock.quantization.plan import Layout, Role

NORM, UP = "kv_a_layernorm.weight", "kv_b_proj.weight"


class LatentAttention(Layer):
    """Normalises latents, rotates, stores what is cached, attends.

    Reads ``kv_a_layernorm.weight`` and ``kv_b_proj.weight``: what heads make of a latent. That
    matrix is kept dense in the model's dtype, since queries are multiplied by its transpose.

    Args:
        ctx: What to build with; the layer enters itself into ``ctx.attention_layers``.
        num_heads: H, over all ranks.
        latent_size: C.
        key_size: N.
        value_size: V.
        rotary: The table, of E features, perhaps with one that scales queries; None leaves
            positions out.
        shared_size: E, where there is no table: the key that all heads share stands as it is.
        eps: Of the norm of latents.
        scale: Multiplies q·k.
        latent_factor: Multiplies normalised latents.
        num_chosen: Most tokens that a query reads, where an indexer chooses them; 0: it reads all.

    Raises:
        ConfigError: The heads do not divide among the ranks.
        UnsupportedError: No provider computes this kind of attention.
    """

    kv: Tensor
    """This layer's pages; the runner sets them when it has planned the memory."""

    def __init__(
        self,
        ctx: Context,
        num_heads: int,
        *,
        latent_size: int,
        key_size: int,
        value_size: int,
        rotary: Rotary | None,
        shared_size: int = 0,
        eps: float,
        scale: float,
        latent_factor: float = 1.0,
        num_chosen: int = 0,
    ) -> None:
        self._ctx, self._eps, self._factor = ctx, eps, latent_factor
        self._query_scale_L = None if rotary is None else rotary.query_scale_L
        if self._query_scale_L is not None:
            self._scale_queries = ctx.ops.resolve(scale_by_position, ctx.spec())
        self._made_size = key_size + value_size
        self._num_all_heads, self._latent_size = num_heads, latent_size
        unit = self._made_size
        self._rows = split_evenly("attention", num_heads * unit, ctx.tp, unit=unit)
        self._num_heads = self._rows.size // unit
        self._table_LE, self._is_interleaved = None, False
        if rotary is not None:
            shared_size, self._table_LE = rotary.rotary_dim, rotary.cos_sin_LC
            self._is_interleaved = rotary.is_interleaved
        self._query_size = key_size + shared_size
        spec = LatentSpec(
            num_heads=self._num_heads,
            latent_size=latent_size,
            rotary_size=shared_size,
            key_size=key_size,
            value_size=value_size,
            scale=scale,
            num_chosen=num_chosen,
            **ctx.cache_sizes(),
        )
        self.group = ctx.group(Retention("full"))
        self.provider: LatentProvider = ctx.cache_provider(latent_attention, spec)
        prepare = ctx.spec(
            page_format=page_format_of(self.provider).tag,
            num_heads=self._num_heads,
            latent_size=latent_size,
            rotary_size=shared_size,
            key_size=key_size,
            page_size=ctx.page_size,
        )
        self._prepare = ctx.ops.resolve(rotate_and_write_latent, prepare)
        where = ctx.device.torch_device
        self._norm_C = torch.empty(latent_size, dtype=ctx.dtype, device=where)
        self._up_HUC: Tensor | None = None
        self._stored = Layout()
        ctx.attention_layers.append(self)

    def forward(
        self, q_TC: Tensor, kv_TX: Tensor, batch: StepBatch, chosen_Tk: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            q_TC: Queries of all heads, side by side. [T, H (N + E)]
            kv_TX: Latents, not yet normalised, and keys, not yet rotated. [T, C + E]
            batch: The step, which the provider has planned in the view of the layer's group.
            chosen_Tk: What an indexer chose, where one does. [T, k]

        Returns:
            [T, H V]
        """
        batch = batch.groups[self.group]
        assert self._up_HUC is not None, "a layer runs before its weights are allocated"
        q_THQ = q_TC.unflatten(1, (self._num_heads, self._query_size))
        if self._query_scale_L is not None:  # before the rotation: it keeps lengths
            q_THQ = self._scale_queries(q_THQ, batch.positions_T, self._query_scale_L)
        q_THQ = self._prepare(
            q_THQ,
            kv_TX,
            self._table_LE,
            self._norm_C,
            self.kv,
            batch,
            provider=self.provider,
            eps=self._eps,
            is_interleaved=self._is_interleaved,
        )
        args = (q_THQ, self._up_HUC, self.kv, batch)
        if chosen_Tk is None:
            return self.provider.run(*args).flatten(1)
        return self.provider.run(*args, chosen_Tk=chosen_Tk).flatten(1)

    def leaves(self) -> Sequence[Leaf]:
        """Return the norm's weight and the heads' matrices."""
        rows = self._num_all_heads * self._made_size
        return [
            Leaf(NORM, (self._latent_size,), Role.SCALE),
            Leaf(UP, (rows, self._latent_size), Role.ABSORBED),
        ]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Make room for the heads' matrices."""
        self._stored = layouts[UP]
        shape = (self._num_heads, self._made_size, self._latent_size)
        self._up_HUC = torch.empty(
            shape, dtype=self._ctx.dtype, device=self._ctx.device.torch_device
        )

    def load(self, name: str, source: Source) -> None:
        """Copy the norm's weight, or this rank's heads."""
        if name == NORM:
            weight_C = source.read(0, self._latent_size)["weight"]
            self._norm_C.copy_(weight_C.float() * self._factor)
            return
        assert self._up_HUC is not None, "a layer is loaded before it is allocated"
        up_YC = self._up_HUC.flatten(0, 1)
        for offset, part in read_span(source, self._rows):
            dense_YC = convert(part, self._stored, Layout(), self._ctx.dtype)["weight"]
            up_YC[offset : offset + len(dense_YC)].copy_(dense_YC)

    @property
    def num_bytes(self) -> int:
        """Bytes of both."""
        return self._norm_C.nbytes + (0 if self._up_HUC is None else self._up_HUC.nbytes)
