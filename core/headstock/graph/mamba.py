"""State spaces of Mamba 1. Shapes: T tokens, C features, N numbers of a feature's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headstock.graph.context import Context, Retention
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.graph.split import split_evenly
from headstock.ops.attention import StepBatch
from headstock.ops.selective_scan import (
    ScanWeights,
    SelectiveScanProvider,
    SelectiveScanSpec,
    selective_scan,
)
from headstock.quantization.plan import Layout, Role

DECAY, SKIP = "A_log", "D"


class SelectiveScan(Layer):
    """Updates and reads the rows' states. Reads ``A_log`` [C, N] and ``D`` [C].

    Args:
        ctx: What to build with; the layer enters itself into ``ctx.attention_layers``.
        size: C, over all ranks.
        state_size: N.

    Raises:
        ConfigError: The features do not divide among the ranks.
        UnsupportedError: No provider computes it.
    """

    kv: Tensor
    """The states of this layer; the runner sets them when it has planned the memory."""

    def __init__(self, ctx: Context, size: int, state_size: int) -> None:
        self._span = split_evenly("a state space", size, ctx.tp)
        spec = SelectiveScanSpec(
            size=self._span.size,
            state_size=state_size,
            dtype=ctx.dtype,
            max_rows=ctx.limits.max_rows,
            max_tokens=ctx.limits.max_tokens,
        )
        self.group = ctx.group(Retention("state"))
        self.provider: SelectiveScanProvider = ctx.state_provider(selective_scan, spec)
        where, here = ctx.device.torch_device, spec.size
        self._weights = ScanWeights(
            decay_CN=torch.empty((here, state_size), dtype=torch.float32, device=where),
            skip_C=torch.empty(here, dtype=torch.float32, device=where),
        )
        self._leaves = [Leaf(DECAY, (size, state_size), Role.BIAS), Leaf(SKIP, (size,), Role.BIAS)]
        ctx.attention_layers.append(self)

    def forward(self, x_TC: Tensor, dt_TC: Tensor, bc_TX: Tensor, batch: StepBatch) -> Tensor:
        """Return what is read.

        Args:
            x_TC: What is taken in. [T, C]
            dt_TC: What steps are made of. [T, C]
            bc_TX: b and c, side by side. [T, 2 N]
            batch: The step, which the provider has planned in the view of the layer's group.

        Returns:
            [T, C]
        """
        batch = batch.groups[self.group]
        return self.provider.run(x_TC, dt_TC, bc_TX, self._weights, self.kv, batch)

    def leaves(self) -> Sequence[Leaf]:
        """Return the small weights."""
        return self._leaves

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weights are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy what this rank's features have of a weight."""
        into = self._weights.decay_CN if name == DECAY else self._weights.skip_C
        into.copy_(source.read(self._span.begin, self._span.end)["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return self._weights.decay_CN.nbytes + self._weights.skip_C.nbytes
