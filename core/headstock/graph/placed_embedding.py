"""Embeddings of ids, places and types of tokens, added up.

They are whole on every rank: models that have them are small.

Shapes: T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.ops.attention import StepBatch
from headstock.ops.embedding import embed_places
from headstock.quantization.plan import Layout, Role


class PlacedEmbedding(Layer):
    """Looks up a token's id, its place in the text and its type.

    Args:
        ctx: What to build with.
        tables: Rows of the three, by their leaf: of ids, of places, of types, in this order.
        size: D.
        first_place: Row of the second table for the first token of a text.
    """

    def __init__(
        self, ctx: Context, tables: Mapping[str, int], size: int, *, first_place: int = 0
    ) -> None:
        self._first_place = first_place
        self._embed = ctx.ops.resolve(embed_places, ctx.spec(size=size))
        self._shapes = {f"{leaf}.weight": (rows, size) for leaf, rows in tables.items()}
        self._ctx = ctx
        self._tables: dict[str, Tensor] = {}

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return the sums. [T, D]"""
        return self._embed(
            ids_T, batch.positions_T, *self._tables.values(), first_place=self._first_place
        )

    def leaves(self) -> Sequence[Leaf]:
        """Return the tables."""
        return [Leaf(name, shape, Role.WHOLE) for name, shape in self._shapes.items()]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Make room for the tables."""
        where = self._ctx.device.torch_device
        for name, shape in self._shapes.items():
            self._tables[name] = torch.empty(shape, dtype=self._ctx.dtype, device=where)

    def load(self, name: str, source: Source) -> None:
        """Copy a table."""
        table = self._tables[name]
        table.copy_(source.read(0, table.shape[0])["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the tables."""
        return sum(table.nbytes for table in self._tables.values())
