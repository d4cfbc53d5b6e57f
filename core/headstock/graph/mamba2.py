"""State spaces of Mamba 2: the layer that keeps them, and the module that families have in common.

Shapes: T tokens, D hidden size, H heads, G groups, P size of a head, N of a state, W tokens of the
convolution, I = H P features between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headstock.graph.arranged import ArrangedLinear, Rows
from headstock.graph.context import Context, Retention
from headstock.graph.group_norm import GatedGroupNorm
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear
from headstock.graph.module import Layer, Leaf, Module
from headstock.graph.source import Source
from headstock.graph.split import Span
from headstock.ops.attention import StepBatch
from headstock.ops.features import weigh_features
from headstock.ops.gates import gate_by_silu
from headstock.ops.mamba2 import Mamba2Provider, Mamba2Spec, Mamba2Weights, mamba2
from headstock.quantization.plan import Layout, Role

CONV, CONV_BIAS = "conv1d.weight", "conv1d.bias"
DECAY, STEP_BIAS, SKIP = "A_log", "dt_bias", "D"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Sizes:
    """What a family's configuration says of its state spaces, over all ranks.

    Attributes:
        hidden_size: D.
        num_heads: H.
        head_dim: P.
        num_groups: G.
        state_size: N.
        kernel_size: W.
        eps: Of the norm.
        has_conv_bias: Whether the convolution has a bias.
        has_bias: Whether the product before it has one.
        has_out_bias: Whether the product behind has one.
        has_norm: Whether what is read from states is normalised, group by group.
        is_gated_first: Whether it is gated before that.
        step_limits: Least and largest step.
        multipliers: Of what the product makes: gates, x, B, C, steps; (): all are 1.
    """

    hidden_size: int
    num_heads: int
    head_dim: int
    num_groups: int
    state_size: int
    kernel_size: int
    eps: float
    has_conv_bias: bool = True
    has_bias: bool = False
    has_out_bias: bool = False
    has_norm: bool = True
    is_gated_first: bool = True
    step_limits: tuple[float, float] = (0.0, math.inf)
    multipliers: tuple[float, ...] = ()

    @property
    def between(self) -> int:
        """I."""
        return self.num_heads * self.head_dim

    def conv_kinds(self, first: int = 0) -> list[Rows]:
        """Return x, B and C, which stand side by side from ``first`` on."""
        head, state = self.head_dim, self.state_size
        shared = partial(Rows, size=state, stride=state, num_heads=self.num_groups, is_shared=True)
        begin = first + self.between
        return [
            Rows(first=first, size=head, stride=head, num_heads=self.num_heads),
            shared(first=begin),
            shared(first=begin + self.num_groups * state),
        ]

    def input_kinds(self) -> list[Rows]:
        """Return gates, x, B, C and steps, as the product's outputs stand."""
        head, heads = self.head_dim, self.num_heads
        conv_size = self.between + 2 * self.num_groups * self.state_size
        gates = Rows(first=0, size=head, stride=head, num_heads=heads)
        steps = Rows(first=self.between + conv_size, size=1, stride=1, num_heads=heads)
        return [gates, *self.conv_kinds(self.between), steps]


class StateSpace(Layer):
    """Convolves, updates and reads the rows' states.

    Reads ``conv1d.weight``, perhaps ``conv1d.bias``, ``A_log``, ``dt_bias`` and ``D``.

    Args:
        ctx: What to build with; the layer enters itself into ``ctx.attention_layers``.
        sizes: See :class:`Mamba2Sizes`.

    Raises:
        ConfigError: The heads or groups do not divide among the ranks.
        UnsupportedError: No provider computes it.
    """

    kv: Tensor
    """The states of this layer; the runner sets them when it has planned the memory."""

    def __init__(self, ctx: Context, sizes: Mamba2Sizes) -> None:
        kinds, name = sizes.conv_kinds(), "a state space"
        self._conv_spans = [span for rows in kinds for span in rows.spans(name, ctx.tp)]
        self._heads = kinds[0].heads(name, ctx.tp)
        least, largest = sizes.step_limits
        spec = Mamba2Spec(
            num_heads=self._heads.size,
            num_groups=kinds[1].heads(name, ctx.tp).size,
            head_dim=sizes.head_dim,
            state_size=sizes.state_size,
            kernel_size=sizes.kernel_size,
            dtype=ctx.dtype,
            max_rows=ctx.limits.max_rows,
            max_tokens=ctx.limits.max_tokens,
            least_step=least,
            largest_step=largest,
        )
        self.spec = spec
        self.group = ctx.group(Retention("state"))
        self.provider: Mamba2Provider = ctx.state_provider(mamba2, spec)
        where, heads = ctx.device.torch_device, spec.num_heads
        self._weights = Mamba2Weights(
            conv_CW=torch.empty((spec.conv_size, spec.kernel_size), dtype=ctx.dtype, device=where),
            conv_bias_C=torch.zeros(spec.conv_size, dtype=ctx.dtype, device=where),
            decay_H=torch.empty(heads, dtype=torch.float32, device=where),
            step_bias_H=torch.empty(heads, dtype=torch.float32, device=where),
            skip_H=torch.empty(heads, dtype=torch.float32, device=where),
        )
        all_conv = sum(rows.size * rows.num_heads for rows in kinds)
        self._leaves = [Leaf(CONV, (all_conv, 1, spec.kernel_size), Role.SCALE)]
        if sizes.has_conv_bias:
            self._leaves.append(Leaf(CONV_BIAS, (all_conv,), Role.BIAS))
        self._leaves += [Leaf(n, (sizes.num_heads,), Role.BIAS) for n in (DECAY, STEP_BIAS, SKIP)]
        ctx.attention_layers.append(self)

    def forward(self, xbc_TC: Tensor, dt_TH: Tensor, batch: StepBatch) -> Tensor:
        """Return what heads read. [T, H P]

        Args:
            xbc_TC: x, B and C, side by side. [T, C]
            dt_TH: What steps are made of. [T, H]
            batch: The step, which the provider has planned in the view of the layer's group.
        """
        batch = batch.groups[self.group]
        return self.provider.run(xbc_TC, dt_TH, self._weights, self.kv, batch).flatten(1)

    def leaves(self) -> Sequence[Leaf]:
        """Return the small weights."""
        return self._leaves

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weights are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy what this rank's heads have of a weight."""
        weights = self._weights
        into, spans = {
            CONV: (weights.conv_CW.unsqueeze(1), self._conv_spans),
            CONV_BIAS: (weights.conv_bias_C, self._conv_spans),
            DECAY: (weights.decay_H, [self._heads]),
            STEP_BIAS: (weights.step_bias_H, [self._heads]),
            SKIP: (weights.skip_H, [self._heads]),
        }[name]
        begin = 0
        for span in spans:
            part = source.read(span.begin, span.end)["weight"]
            into[begin : begin + span.size].copy_(part)
            begin += span.size

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        weights = self._weights
        kept = (weights.conv_CW, weights.conv_bias_C, weights.decay_H)
        return sum(tensor.nbytes for tensor in kept) + 2 * weights.decay_H.nbytes


class Mamba2(Module):
    """W_out of what state spaces read, gated and perhaps normalised.

    Args:
        ctx: What to build with.
        sizes: See :class:`Mamba2Sizes`.
    """

    def __init__(self, ctx: Context, sizes: Mamba2Sizes) -> None:
        kinds, has_bias = sizes.input_kinds(), sizes.has_bias
        leaves = {"in_proj": kinds}
        self.inputs = ArrangedLinear(ctx, sizes.hidden_size, leaves, has_bias=has_bias)
        self.mix = StateSpace(ctx, sizes)
        here = [rows.heads("in_proj", ctx.tp).size * rows.size for rows in kinds]
        self._sizes = (here[0], sum(here[1:4]), here[4])
        self._weigh = None
        if any(factor != 1 for factor in sizes.multipliers):
            factors = [f for f, n in zip(sizes.multipliers, here, strict=True) for _ in range(n)]
            weights = torch.tensor(factors, device=ctx.device.torch_device, dtype=ctx.dtype)
            self._weigh = partial(ctx.ops.resolve(weigh_features, ctx.spec()), weight_A=weights)
        self.norm = None
        if sizes.has_norm:
            heads = kinds[0].heads("in_proj", ctx.tp)
            span = Span(heads.begin * sizes.head_dim, heads.end * sizes.head_dim)
            self.norm = GatedGroupNorm(
                ctx,
                sizes.between,
                span,
                num_groups=sizes.num_groups,
                eps=sizes.eps,
                is_gated_first=sizes.is_gated_first,
            )
        self._gate = ctx.ops.resolve(gate_by_silu, ctx.spec())
        out = {"out_proj": sizes.hidden_size}
        self.out = Linear(ctx, sizes.between, out, split="in", has_bias=sizes.has_out_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        """Return the module's output. [T, D]"""
        made_TY = self.inputs(x_TD)
        if self._weigh is not None:
            made_TY = self._weigh(made_TY)
        gate_TI, xbc_TC, dt_TH = made_TY.split(self._sizes, 1)
        y_TI, gate_TI = keep(self.mix(xbc_TC, dt_TH, batch), batch), keep(gate_TI, batch)
        mixed_TI = self._gate(y_TI, gate_TI) if self.norm is None else self.norm(y_TI, gate_TI)
        return self.out(mixed_TI)
