"""The layer of products of groups. Shapes: T tokens, G groups, I inputs and O outputs of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source, read_span
from headstock.graph.split import split_evenly
from headstock.ops.grouped_linear import multiply_groups
from headstock.quantization.convert import convert
from headstock.quantization.plan import Layout, Role


class GroupedLinear(Layer):
    """Multiplies each group of features by its own matrix: ``leaf.weight`` [G O, I].

    Each rank has whole groups. Matrices are kept dense.

    Args:
        ctx: What to build with.
        in_features: I.
        out_features: O.
        num_groups: G, over all ranks.
        leaf: Checkpoint name.

    Raises:
        ConfigError: The groups do not divide among the ranks.
    """

    def __init__(
        self, ctx: Context, in_features: int, out_features: int, *, num_groups: int, leaf: str
    ) -> None:
        self._ctx, self._leaf = ctx, leaf
        self._shape = (num_groups * out_features, in_features)
        self._rows = split_evenly(leaf, self._shape[0], ctx.tp, unit=out_features)
        self._on_rank = (self._rows.size // out_features, out_features, in_features)
        count, out, size = self._on_rank
        spec = ctx.spec(num_groups=count, in_features=size, out_features=out)
        self._multiply = ctx.ops.resolve(multiply_groups, spec)
        self._weight_GOI: Tensor | None = None
        self._stored = Layout()

    def forward(self, x_TX: Tensor) -> Tensor:
        """Return the products, side by side. [T, G O]"""
        assert self._weight_GOI is not None, "a layer runs before its weights are allocated"
        return self._multiply(x_TX, self._weight_GOI)

    def leaves(self) -> Sequence[Leaf]:
        """Return the matrices, one below the other."""
        return [Leaf(f"{self._leaf}.weight", self._shape, Role.ABSORBED)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Make room for this rank's groups."""
        self._stored = layouts[f"{self._leaf}.weight"]
        where = self._ctx.device.torch_device
        self._weight_GOI = torch.empty(self._on_rank, dtype=self._ctx.dtype, device=where)

    def load(self, name: str, source: Source) -> None:
        """Copy this rank's groups."""
        assert self._weight_GOI is not None, "a layer is loaded before it is allocated"
        flat_YI = self._weight_GOI.flatten(0, 1)
        for offset, part in read_span(source, self._rows):
            dense_YI = convert(part, self._stored, Layout(), self._ctx.dtype)["weight"]
            flat_YI[offset : offset + len(dense_YI)].copy_(dense_YI)

    @property
    def num_bytes(self) -> int:
        """Bytes of this rank's matrices."""
        return 0 if self._weight_GOI is None else self._weight_GOI.nbytes
