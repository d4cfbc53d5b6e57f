"""Layers of several residual streams: what reads them, what mixes them, what ends them.

Shapes: T tokens, N streams, D hidden size, C = N D, X weights of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.ops.hyper_connections import collapse_streams, expand_streams, merge_streams
from headstock.quantization.plan import Layout, Role


class StreamWeights(Layer):
    """What makes weights of streams: ``leaf_fn`` [X, C], ``leaf_base`` [X], ``leaf_scale``.

    All are kept in float32.

    Args:
        ctx: What to build with.
        leaf: How the checkpoint's names begin.
        num_weights: X.
        width: C.
        num_scales: Kinds of weights.
    """

    def __init__(
        self, ctx: Context, leaf: str, *, num_weights: int, width: int, num_scales: int
    ) -> None:
        where = ctx.device.torch_device
        self._mix_XC = torch.zeros((num_weights, width), device=where)
        self._base_X = torch.zeros(num_weights, device=where)
        self._scale_S = torch.ones(num_scales, device=where)
        self._weights = {
            f"{leaf}_fn": (self._mix_XC, Role.WHOLE),
            f"{leaf}_base": (self._base_X, Role.BIAS),
            f"{leaf}_scale": (self._scale_S, Role.SCALE),
        }

    def leaves(self) -> Sequence[Leaf]:
        """Return the three tensors."""
        return [Leaf(n, tuple(weight.shape), role) for n, (weight, role) in self._weights.items()]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: they are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy one of them."""
        self._weights[name][0].copy_(source.read(0, source.shape[0])["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of all three."""
        return sum(weight.nbytes for weight, _ in self._weights.values())


class HyperConnection(StreamWeights):
    """Reads what a layer takes from the streams, and mixes what it returns into them.

    Args:
        ctx: What to build with.
        leaf: As in :class:`StreamWeights`.
        hidden_size: D.
        num_streams: N.
        norm_eps: Of the streams' norm.
        eps: Added to weights and sums.
        num_rounds: How often rows and columns are brought to 1.
    """

    def __init__(
        self,
        ctx: Context,
        leaf: str,
        hidden_size: int,
        *,
        num_streams: int,
        norm_eps: float,
        eps: float,
        num_rounds: int,
    ) -> None:
        num_weights = num_streams * (2 + num_streams)
        width = num_streams * hidden_size
        super().__init__(ctx, leaf, num_weights=num_weights, width=width, num_scales=3)
        spec = ctx.spec(num_streams=num_streams, size=hidden_size)
        self._collapse = partial(
            ctx.ops.resolve(collapse_streams, spec),
            num_streams=num_streams,
            norm_eps=norm_eps,
            eps=eps,
            num_rounds=num_rounds,
        )
        self._expand = ctx.ops.resolve(expand_streams, spec)

    def forward(self, x_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the layer takes, [T, D], and what :meth:`expand` is given."""
        return self._collapse(x_TC, self._mix_XC, self._base_X, self._scale_S)

    def expand(self, x_TC: Tensor, y_TD: Tensor, write_TN: Tensor, mix_TM: Tensor) -> Tensor:
        """Return the streams behind the layer, whose output is ``y_TD``. [T, C]"""
        return self._expand(x_TC, y_TD, write_TN, mix_TM)


class StreamMerge(StreamWeights):
    """Reads what the output layer takes from the streams.

    Args:
        ctx: What to build with.
        leaf: As in :class:`StreamWeights`.
        hidden_size: D.
        num_streams: N.
        norm_eps: Of the streams' norm.
        eps: Added to weights.
    """

    def __init__(
        self,
        ctx: Context,
        leaf: str,
        hidden_size: int,
        *,
        num_streams: int,
        norm_eps: float,
        eps: float,
    ) -> None:
        width = num_streams * hidden_size
        super().__init__(ctx, leaf, num_weights=num_streams, width=width, num_scales=1)
        spec = ctx.spec(num_streams=num_streams, size=hidden_size)
        run = ctx.ops.resolve(merge_streams, spec)
        self._merge = partial(run, norm_eps=norm_eps, eps=eps)

    def forward(self, x_TC: Tensor) -> Tensor:
        """Return the sum. [T, D]"""
        return self._merge(x_TC, self._mix_XC, self._base_X, self._scale_S)
