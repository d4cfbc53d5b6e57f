"""Products whose outputs stand in another order than the rows of the checkpoint's matrices.

Checkpoints put what belongs to one head side by side, several kinds of features in turn; ops want
all heads' features of one kind together. Rows are put in that order when they are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from headstock.graph.context import Context
from headstock.graph.linear import Linear, Part
from headstock.graph.source import Source
from headstock.graph.split import Gap, Span, split_evenly, split_or_replicate
from headstock.ops.activation_kinds import Activation
from headstock.ops.communication import Group
from headstock.quantization.convert import convert
from headstock.quantization.plan import Layout, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One kind of features: some neighbouring rows of each head.

    Attributes:
        first: Where those of the first head begin.
        size: How many there are of a head.
        stride: From those of one head to those of the next.
        num_heads: Heads, over all ranks.
        is_shared: Whether ranks may hold the same heads when there are too few for all.
        padding: Zeros among the outputs behind each head's.
    """

    first: int
    size: int
    stride: int
    num_heads: int
    is_shared: bool = False
    padding: int = 0

    def heads(self, name: str, tp: Group) -> Span:
        """Return this rank's heads."""
        split = split_or_replicate if self.is_shared else split_evenly
        span = split(name, self.num_heads * self.size, tp, unit=self.size)
        return Span(span.begin // self.size, span.end // self.size)

    def spans(self, name: str, tp: Group) -> Iterator[Span | Gap]:
        """Yield the rows of this rank, those that are neighbours together."""
        heads = self.heads(name, tp)
        if self.stride == self.size and not self.padding:
            yield Span(self.first + heads.begin * self.size, self.first + heads.end * self.size)
            return
        for head in range(heads.begin, heads.end):
            begin = self.first + head * self.stride
            yield Span(begin, begin + self.size)
            if self.padding:
                yield Gap(self.padding)


def features(size: int, first: int = 0) -> Rows:
    """Return rows that belong to no heads: each rank has equally many neighbours."""
    return Rows(first=first, size=1, stride=1, num_heads=size)


class ArrangedLinear(Linear):
    """y = x·Wᵀ + b, rows of W in the order of ``leaves``.

    Args:
        ctx: What to build with.
        in_features: Of the hidden state.
        leaves: Of each checkpoint matrix the kinds of features, in the order of the outputs.
        has_bias: Whether each matrix has a bias.
        role: What the matrices are for.
        activation: As in :class:`~headstock.graph.linear.Linear`.
        into: Likewise.

    Raises:
        ConfigError: Heads do not divide among the ranks.
    """

    def __init__(
        self,
        ctx: Context,
        in_features: int,
        leaves: Mapping[str, Sequence[Rows]],
        *,
        has_bias: bool = False,
        role: Role = Role.MATRIX,
        activation: Activation | None = None,
        into: Linear | None = None,
    ) -> None:
        self._kinds = leaves
        parts = {
            name: Part(sum(rows.size * rows.num_heads for rows in kinds))
            for name, kinds in leaves.items()
        }
        super().__init__(
            ctx, in_features, parts, has_bias=has_bias, role=role, activation=activation, into=into
        )

    def _rows_of(self, name: str, part: Part) -> Span:
        tp, kinds = self._ctx.tp, self._kinds[name]
        return Span(0, sum(k.heads(name, tp).size * (k.size + k.padding) for k in kinds))

    def _spans_of(self, name: str) -> Iterator[Span | Gap]:
        return (s for kind in self._kinds[name] for s in kind.spans(name, self._ctx.tp))

    def load(self, name: str, source: Source) -> None:
        """Take this rank's rows of a matrix or a bias, kind by kind."""
        part_name, _, what = name.rpartition(".")
        place, dtype = self._places[part_name], self._ctx.dtype
        begin = place.begin
        for rows in self._spans_of(part_name):
            if isinstance(rows, Gap):
                zeros = torch.zeros((rows.size, *source.shape[1:]), dtype=dtype)
                part, stored = {"weight": zeros}, Layout()
            else:
                part, stored = source.read(rows.begin, rows.end), place.stored
            if what == "bias":
                place.provider.load_bias(part["weight"].to(dtype), begin)
            else:
                if place.kept != stored:
                    part = {n: t.to(self._ctx.device.torch_device) for n, t in part.items()}
                part = convert(part, stored, place.kept, dtype)
                place.provider.load(part, begin)
            begin += rows.size
