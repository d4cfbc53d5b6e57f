"""The layer of gated short convolutions. Shapes: T tokens, C features, W tokens it reaches over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headstock.graph.context import Context, Retention
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.graph.split import split_evenly
from headstock.ops.attention import StepBatch
from headstock.ops.short_convolution import (
    ConvolutionWeights,
    ShortConvolutionProvider,
    ShortConvolutionSpec,
    short_convolution,
)
from headstock.quantization.plan import Layout, Role


class ShortConvolution(Layer):
    """Multiplies b·x, convolves it with the row's last tokens, and multiplies that by c.

    Without gates it convolves x.

    Reads ``leaf.weight`` [C, 1, W], and ``leaf.bias`` [C].

    Args:
        ctx: What to build with; the layer enters itself into ``ctx.attention_layers``.
        size: C, over all ranks.
        kernel_size: W.
        leaf: Checkpoint name.
        has_bias: Whether the checkpoint has a bias.
        is_gated: Whether there are b and c.

    Raises:
        ConfigError: The features do not divide among the ranks.
        UnsupportedError: No provider computes it.
    """

    kv: Tensor
    """The states of this layer; the runner sets them when it has planned the memory."""

    def __init__(
        self,
        ctx: Context,
        size: int,
        kernel_size: int,
        *,
        leaf: str,
        has_bias: bool = False,
        is_gated: bool = True,
    ) -> None:
        self._span = split_evenly(leaf, size, ctx.tp)
        spec = ShortConvolutionSpec(
            size=self._span.size,
            kernel_size=kernel_size,
            dtype=ctx.dtype,
            max_rows=ctx.limits.max_rows,
            max_tokens=ctx.limits.max_tokens,
            is_gated=is_gated,
        )
        self.group = ctx.group(Retention("state"))
        self.provider: ShortConvolutionProvider = ctx.state_provider(short_convolution, spec)
        where = ctx.device.torch_device
        self._weights = ConvolutionWeights(
            conv_CW=torch.empty((spec.size, kernel_size), dtype=ctx.dtype, device=where),
            bias_C=torch.zeros(spec.size, dtype=ctx.dtype, device=where),
        )
        self._leaves = [Leaf(f"{leaf}.weight", (size, 1, kernel_size), Role.SCALE)]
        if has_bias:
            self._leaves.append(Leaf(f"{leaf}.bias", (size,), Role.BIAS))
        ctx.attention_layers.append(self)

    def forward(self, bcx_TY: Tensor, batch: StepBatch) -> Tensor:
        """Convolve.

        Args:
            bcx_TY: The kinds b, c and x of features, side by side, [T, 3 C]; or x alone. [T, C]
            batch: The step, which the provider has planned in the view of the layer's group.

        Returns:
            [T, C]
        """
        return self.provider.run(bcx_TY, self._weights, self.kv, batch.groups[self.group])

    def leaves(self) -> Sequence[Leaf]:
        """Return the small weights."""
        return self._leaves

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weights are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy what this rank's features have of a weight."""
        part = source.read(self._span.begin, self._span.end)["weight"]
        if name.endswith(".bias"):
            self._weights.bias_C.copy_(part)
        else:
            self._weights.conv_CW.copy_(part[:, 0])

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return self._weights.conv_CW.nbytes + self._weights.bias_C.nbytes
