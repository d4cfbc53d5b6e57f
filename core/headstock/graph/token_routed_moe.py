"""Experts that a table has for each token's id: nothing is learned of the choice but the weights.

Shapes: T tokens, E experts, k experts of a token, V ids, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headstock.errors import CheckpointError
from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.routed_moe import RoutedMoE
from headstock.graph.source import Source
from headstock.ops.routing import Routing, route_by_token
from headstock.quantization.plan import Layout, Role


class ExpertTable(Layer):
    """The experts of each id: ``leaf`` [V, k]. Every rank has all of it.

    Args:
        ctx: What to build with.
        leaf: Checkpoint name.
        shape: (V, k).
        num_experts: E.
    """

    def __init__(
        self, ctx: Context, leaf: str, shape: tuple[int, int], *, num_experts: int
    ) -> None:
        self._leaf, self._num_experts = leaf, num_experts
        where = ctx.device.torch_device
        self.experts_Vk = torch.zeros(shape, dtype=torch.int32, device=where)

    def leaves(self) -> Sequence[Leaf]:
        """Return the table."""
        return [Leaf(self._leaf, tuple(self.experts_Vk.shape), Role.IDS)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the table is small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy the table.

        Raises:
            CheckpointError: It names experts that there are not.
        """
        found_Vk = source.read(0, source.shape[0])["weight"]
        least, most = (int(bound) for bound in found_Vk.aminmax())
        if least < 0 or most >= self._num_experts:
            raise CheckpointError(
                f"{name} names experts {least} to {most}; the configuration has"
                f" {self._num_experts}, 0 to {self._num_experts - 1}.",
                remedy="Check that config.json and the weights belong together.",
            )
        self.experts_Vk.copy_(found_Vk)

    @property
    def num_bytes(self) -> int:
        """Bytes of the table."""
        return self.experts_Vk.nbytes


class TokenRoutedMoE(RoutedMoE):
    """As :class:`RoutedMoE`, its experts chosen by a table; the router weighs them.

    Args:
        ctx: What to build with.
        hidden_size: D.
        intermediate_size: Features between an expert's matrices, over all ranks.
        num_experts: E.
        routing: How experts are weighed.
        vocab_size: V.
        table: Checkpoint name of the table, below this module.
        **options: As :class:`RoutedMoE` takes them.
    """

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        routing: Routing,
        *,
        vocab_size: int,
        table: str,
        **options: Any,
    ) -> None:
        super().__init__(ctx, hidden_size, intermediate_size, num_experts, routing, **options)
        shape = (vocab_size, routing.k)
        self.table = ExpertTable(ctx, table, shape, num_experts=num_experts)
        spec = ctx.spec(
            num_experts=num_experts, experts_per_token=routing.k, features=routing.features
        )
        self._by_token = partial(ctx.ops.resolve(route_by_token, spec), routing=routing)

    def forward(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Tensor:
        """Return the layer's output. [T, D]

        Args:
            x_TD: [T, D]
            ids_T: Ids of the tokens, always. int64. [T]
        """
        assert ids_T is not None, "experts are chosen by ids, and none came"
        chosen = self._by_token(self.router(x_TD), ids_T, self.table.experts_Vk)
        return self.add_shared(self.routed(x_TD, *chosen), x_TD)
