"""The layer of linear attention by the gated delta rule.

Shapes: T tokens, K key heads, V value heads, Dk and Dv sizes of their heads, C convolved features,
W tokens of the convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from headstock.graph.arranged import Rows
from headstock.graph.context import Context, Retention
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.ops.attention import StepBatch
from headstock.ops.gates import gated_norm
from headstock.ops.linear_attention import (
    DeltaWeights,
    LinearAttentionProvider,
    LinearAttentionSpec,
    linear_attention,
)
from headstock.quantization.plan import Layout, Role

CONV, DECAY, BIAS, NORM = "conv1d.weight", "A_log", "dt_bias", "norm.weight"


class LinearAttention(Layer):
    """Convolves, updates and reads the rows' states, normalises and gates what was read.

    Reads ``conv1d.weight``, ``A_log``, ``dt_bias`` and ``norm.weight``.

    Args:
        ctx: What to build with; the layer enters itself into ``ctx.attention_layers``.
        num_key_heads: K, over all ranks.
        num_value_heads: V, over all ranks.
        key_size: Dk.
        value_size: Dv.
        kernel_size: W.
        eps: Of the norm.

    Raises:
        ConfigError: The key heads do not divide among the ranks.
        UnsupportedError: Nobody computes this kind of attention.
    """

    kv: Tensor
    """The states of this layer; the runner sets them when it has planned the memory."""

    def __init__(
        self,
        ctx: Context,
        *,
        num_key_heads: int,
        num_value_heads: int,
        key_size: int,
        value_size: int,
        kernel_size: int,
        eps: float,
    ) -> None:
        each = num_value_heads // num_key_heads * value_size
        keys, self._kernel_size = num_key_heads * key_size, kernel_size
        alike = partial(Rows, size=key_size, stride=key_size, num_heads=num_key_heads)
        values = Rows(first=2 * keys, size=each, stride=each, num_heads=num_key_heads)
        kinds = [alike(first=0), alike(first=keys), values]
        name = "linear attention"
        self._conv_spans = [span for rows in kinds for span in rows.spans(name, ctx.tp)]
        heads = kinds[0].heads(name, ctx.tp)
        per_key = num_value_heads // num_key_heads
        self._first_head, num_values = heads.begin * per_key, heads.size * per_key
        self._all_values, self._all_conv = num_value_heads, 2 * keys + num_key_heads * each
        spec = LinearAttentionSpec(
            num_key_heads=heads.size,
            num_value_heads=num_values,
            key_size=key_size,
            value_size=value_size,
            kernel_size=kernel_size,
            dtype=ctx.dtype,
            max_rows=ctx.limits.max_rows,
            max_tokens=ctx.limits.max_tokens,
        )
        self.group = ctx.group(Retention("state"))
        self.provider: LinearAttentionProvider = ctx.state_provider(linear_attention, spec)
        self._norm = ctx.ops.resolve(gated_norm, ctx.spec(size=value_size))
        self._eps, where = eps, ctx.device.torch_device
        self._weights = DeltaWeights(
            conv_CW=torch.empty((spec.conv_size, kernel_size), dtype=ctx.dtype, device=where),
            decay_V=torch.empty(num_values, dtype=torch.float32, device=where),
            bias_V=torch.empty(num_values, dtype=torch.float32, device=where),
        )
        self._norm_D = torch.empty(value_size, dtype=ctx.dtype, device=where)
        ctx.attention_layers.append(self)

    def forward(
        self, qkv_TC: Tensor, gate_TX: Tensor, b_TV: Tensor, a_TV: Tensor, batch: StepBatch
    ) -> Tensor:
        """Attend.

        Args:
            qkv_TC: Queries, keys and values, side by side. [T, C]
            gate_TX: Gates of what value heads read. [T, V Dv]
            b_TV: Logits of what a token's value replaces. [T, V]
            a_TV: What a token's decay is made of. [T, V]
            batch: The step, which the provider has planned in the view of the layer's group.

        Returns:
            [T, V Dv]
        """
        batch = batch.groups[self.group]
        y_TVd = self.provider.run(qkv_TC, b_TV, a_TV, self._weights, self.kv, batch)
        gate_TVd = gate_TX.unflatten(1, y_TVd.shape[1:])
        return self._norm(y_TVd, gate_TVd, self._norm_D, eps=self._eps).flatten(1)

    def leaves(self) -> Sequence[Leaf]:
        """Return the small weights."""
        heads = (self._all_values,)
        return [
            Leaf(CONV, (self._all_conv, 1, self._kernel_size), Role.SCALE),
            Leaf(DECAY, heads, Role.BIAS),
            Leaf(BIAS, heads, Role.BIAS),
            Leaf(NORM, tuple(self._norm_D.shape), Role.SCALE),
        ]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weights are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy a weight, or what this rank's heads have of it."""
        if name == NORM:
            self._norm_D.copy_(source.read(0, source.shape[0])["weight"])
        elif name == CONV:
            begin = 0
            for span in self._conv_spans:
                part_C1W = source.read(span.begin, span.end)["weight"]
                self._weights.conv_CW[begin : begin + span.size].copy_(part_C1W[:, 0])
                begin += span.size
        else:
            values_V = self._weights.decay_V if name == DECAY else self._weights.bias_V
            first = self._first_head
            values_V.copy_(source.read(first, first + len(values_V))["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        weights = self._weights
        kept = (weights.conv_CW, weights.decay_V, weights.bias_V, self._norm_D)
        return sum(tensor.nbytes for tensor in kept)
