"""A feed-forward layer of which only the highest gates count.

Shapes: T tokens, D hidden size, F features between, on this rank.
"""

from __future__ import annotations

from functools import partial
from statistics import NormalDist

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.ops.activation import activate_and_mul
from headstock.ops.activation_kinds import Activation
from headstock.ops.sparse import keep_above, sum_moments


class SparseMLP(Module):
    """W_down (activation(relu(g - threshold)) * (W_up x)), with g = W_gate x.

    The threshold is where ``share`` of a token's gates would be below, were they normally
    distributed. Ranks add up the sums that it is made of. Reads ``gate_proj``, ``up_proj`` and
    ``down_proj``.

    Args:
        ctx: What to build with.
        hidden_size: D.
        intermediate_size: Features between, over all ranks.
        activation: Of the gate.
        share: Part of the gates that become 0; over 0 and under 1.
    """

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        intermediate_size: int,
        activation: Activation,
        *,
        share: float,
    ) -> None:
        size = intermediate_size
        self.down = Linear(ctx, size, {"down_proj": hidden_size}, split="in")
        self.gate_up = Linear(ctx, hidden_size, {"gate_proj": size, "up_proj": size})
        self._tp = ctx.tp
        self._sum = ctx.ops.resolve(sum_moments, ctx.spec())
        keep = ctx.ops.resolve(keep_above, ctx.spec())
        deviations = NormalDist().inv_cdf(share)
        self._keep = partial(keep, width=size, deviations=deviations)
        spec = ctx.spec(features=activation.features, size=size // ctx.tp.size)
        self._join = partial(ctx.ops.resolve(activate_and_mul, spec), activation=activation)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the layer's output. [T, D]"""
        gate_TF, up_TF = self.gate_up(x_TD).chunk(2, dim=1)
        sums_T2 = self._tp.all_reduce(self._sum(gate_TF))
        return self.down(self._join(self._keep(gate_TF, sums_T2), up_TF))
