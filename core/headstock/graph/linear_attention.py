"""The layer of linear attention by the gated delta rule.

Shapes: T tokens, K key heads, V value heads, Dk and Dv sizes of their heads, C convolved features,
W tokens of the convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from headstock.graph.arranged import Rows
from headstock.graph.context import Context, Retention
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.graph.split import Span
from headstock.ops.attention import StepBatch
from headstock.ops.gates import gate_features, gated_norm
from headstock.ops.linear_attention import (
    DeltaWeights,
    LinearAttentionProvider,
    LinearAttentionSpec,
    linear_attention,
)
from headstock.ops.norm import rms_norm
from headstock.quantization.plan import Layout, Role

DECAY, BIAS = "A_log", "dt_bias"


@dataclass(frozen=True, slots=True)
class _Convolved:
    """A checkpoint's weights of the convolution, and where this rank has what it takes of them.

    Attributes:
        size: Features, over all ranks.
        begin: Where those that are taken begin here.
        spans: Which are taken, in turn.
    """

    size: int
    begin: int
    spans: Sequence[Span]


class LinearAttention(Layer):
    """Convolves, updates and reads the rows' states, normalises and gates what was read.

    Reads the convolution's weights, ``A_log``, ``dt_bias`` and the norm's weight.

    Args:
        ctx: What to build with; the layer enters itself into ``ctx.attention_layers``.
        num_key_heads: K, over all ranks.
        num_value_heads: V, over all ranks.
        key_size: Dk.
        value_size: Dv.
        kernel_size: W.
        eps: Of the norm.
        decays_by_channel: Whether each channel of a key decays at a rate of its own.
        gate: What gates are put through.
        decay_shape: How the checkpoint has ``A_log``; () stands for [V].
        convs: Checkpoint name of the convolution of queries, keys and values, or of each of them.
        norm: Checkpoint name of the norm.

    Raises:
        ConfigError: The key heads do not divide among the ranks.
        UnsupportedError: No provider computes this kind of attention.
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
        decays_by_channel: bool = False,
        gate: Literal["silu", "sigmoid"] = "silu",
        decay_shape: tuple[int, ...] = (),
        convs: Sequence[str] = ("conv1d",),
        norm: str = "norm",
    ) -> None:
        each = num_value_heads // num_key_heads * value_size
        keys, self._kernel_size = num_key_heads * key_size, kernel_size
        alike = partial(Rows, size=key_size, stride=key_size, num_heads=num_key_heads)
        values = Rows(first=2 * keys, size=each, stride=each, num_heads=num_key_heads)
        kinds = [alike(first=0), alike(first=keys), values]
        name = "linear attention"
        sizes = (keys, keys, num_key_heads * each)
        spans = [[s for s in rows.spans(name, ctx.tp) if isinstance(s, Span)] for rows in kinds]
        self._convs = _convolved(convs, sizes, spans)
        heads = kinds[0].heads(name, ctx.tp)
        per_key = num_value_heads // num_key_heads
        self._first_head, num_values = heads.begin * per_key, heads.size * per_key
        self._all_values, self._norm_leaf = num_value_heads, f"{norm}.weight"
        spec = LinearAttentionSpec(
            num_key_heads=heads.size,
            num_value_heads=num_values,
            key_size=key_size,
            value_size=value_size,
            kernel_size=kernel_size,
            dtype=ctx.dtype,
            max_rows=ctx.limits.max_rows,
            max_tokens=ctx.limits.max_tokens,
            decays_by_channel=decays_by_channel,
        )
        self._decay_shape = decay_shape
        self._decays = spec.num_decays // num_values
        self.group = ctx.group(Retention("state"))
        self.provider: LinearAttentionProvider = ctx.state_provider(linear_attention, spec)
        self._norm_heads = _norm_and_gate(ctx, value_size, gate)
        self._eps, where = eps, ctx.device.torch_device
        self._weights = DeltaWeights(
            conv_CW=torch.empty((spec.conv_size, kernel_size), dtype=ctx.dtype, device=where),
            decay_V=torch.empty(num_values, dtype=torch.float32, device=where),
            bias_G=torch.empty(spec.num_decays, dtype=torch.float32, device=where),
        )
        self._norm_D = torch.empty(value_size, dtype=ctx.dtype, device=where)
        ctx.attention_layers.append(self)

    def forward(
        self, qkv_TC: Tensor, gate_TX: Tensor, b_TV: Tensor, a_TG: Tensor, batch: StepBatch
    ) -> Tensor:
        """Attend.

        Args:
            qkv_TC: Queries, keys and values, side by side. [T, C]
            gate_TX: Gates of what value heads read. [T, V Dv]
            b_TV: Logits of what a token's value replaces. [T, V]
            a_TG: What a token's decays are made of. [T, V], or [T, V Dk] by channel
            batch: The step, which the provider has planned in the view of the layer's group.

        Returns:
            [T, V Dv]
        """
        batch = batch.groups[self.group]
        y_TVd = self.provider.run(qkv_TC, b_TV, a_TG, self._weights, self.kv, batch)
        gate_TVd = gate_TX.unflatten(1, y_TVd.shape[1:])
        return self._norm_heads(y_TVd, gate_TVd, self._norm_D, eps=self._eps).flatten(1)

    def leaves(self) -> Sequence[Leaf]:
        """Return the small weights."""
        heads, width = self._all_values, self._kernel_size
        convs = [Leaf(name, (p.size, 1, width), Role.SCALE) for name, p in self._convs.items()]
        return [
            *convs,
            Leaf(DECAY, self._decay_shape or (heads,), Role.BIAS),
            Leaf(BIAS, (heads * self._decays,), Role.BIAS),
            Leaf(self._norm_leaf, tuple(self._norm_D.shape), Role.SCALE),
        ]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weights are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy a weight, or what this rank's heads have of it."""
        weights = self._weights
        if name == self._norm_leaf:
            self._norm_D.copy_(source.read(0, source.shape[0])["weight"])
        elif name in self._convs:
            begin = self._convs[name].begin
            for span in self._convs[name].spans:
                part_C1W = source.read(span.begin, span.end)["weight"]
                weights.conv_CW[begin : begin + span.size].copy_(part_C1W[:, 0])
                begin += span.size
        elif name == DECAY:
            all_V = source.read(0, source.shape[0])["weight"].flatten()
            weights.decay_V.copy_(all_V[self._first_head :][: len(weights.decay_V)])
        else:
            first = self._first_head * self._decays
            weights.bias_G.copy_(source.read(first, first + len(weights.bias_G))["weight"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        weights = self._weights
        kept = (weights.conv_CW, weights.decay_V, weights.bias_G, self._norm_D)
        return sum(tensor.nbytes for tensor in kept)


def _convolved(
    names: Sequence[str], sizes: Sequence[int], spans: Sequence[Sequence[Span]]
) -> Mapping[str, _Convolved]:
    """Return where a checkpoint's weights of the convolution go.

    Args:
        names: Of one tensor for all kinds of features, or of one for each kind.
        sizes: Features of each kind, over all ranks.
        spans: Which of them this rank has, counted from the first feature of all kinds on.
    """
    if len(names) == 1:
        every = [span for kind in spans for span in kind]
        return {f"{names[0]}.weight": _Convolved(sum(sizes), 0, every)}
    found: dict[str, _Convolved] = {}
    first = begin = 0
    for name, size, kind in zip(names, sizes, spans, strict=True):
        own = [Span(span.begin - first, span.end - first) for span in kind]
        found[f"{name}.weight"] = _Convolved(size, begin, own)
        first, begin = first + size, begin + sum(span.size for span in own)
    return found


def _norm_and_gate(
    ctx: Context, size: int, gate: Literal["silu", "sigmoid"]
) -> Callable[..., Tensor]:
    """Return what normalises heads and multiplies them by a function of gates. [T, V, Dv]"""
    if gate == "silu":
        return ctx.ops.resolve(gated_norm, ctx.spec(size=size))
    norm = ctx.ops.resolve(rms_norm, ctx.spec(size=size))
    multiply = ctx.ops.resolve(gate_features, ctx.spec())

    def run(y_TVd: Tensor, gate_TVd: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
        normed_Xd = norm(y_TVd.flatten(0, 1), weight_D, eps=eps)
        return multiply(normed_Xd.unflatten(0, y_TVd.shape[:2]).flatten(1), gate_TVd.flatten(1))

    return run
