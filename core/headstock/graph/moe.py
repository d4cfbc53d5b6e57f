"""Mixtures of experts. Shapes: T tokens, k experts of a token, D hidden size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.linear import Linear, Part, layout_on_rank
from headstock.graph.module import Layer, Leaf, Module
from headstock.graph.source import Source, read_span
from headstock.graph.split import Span, split_evenly
from headstock.ops.activation_kinds import SILU, Activation
from headstock.ops.moe import ExpertsProvider, ExpertsSpec, Matrix, experts, route_topk
from headstock.quantization.convert import convert, narrow_inputs
from headstock.quantization.plan import Layout, Role, layout_of_share, shared_layout

QWEN_NAMES: Mapping[Matrix, str] = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
"""What most families call an expert's matrices."""


class MoE(Module):
    """sum over the k best experts of weight · W_down(activation(W_gate x) * (W_up x)).

    Reads the router's ``gate.weight``, and the experts' matrices.

    Args:
        ctx: What to build with.
        hidden_size: D.
        intermediate_size: Features between an expert's matrices, over all ranks.
        num_experts: How many there are.
        experts_per_token: k.
        is_normalized: Whether the weights of a token's experts sum to 1.
        names: What the checkpoint calls an expert's matrices.
        router: What it calls the router's.
        has_bias: Whether the router's and every expert's matrices have biases.
        activation: Of the gate.
    """

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        experts_per_token: int,
        *,
        is_normalized: bool,
        names: Mapping[Matrix, str] = QWEN_NAMES,
        router: str = "gate",
        has_bias: bool = False,
        activation: Activation = SILU,
    ) -> None:
        # Every rank routes for itself: as many logits as experts are cheaper than to exchange them.
        logits = Part(num_experts, unit=num_experts, is_shared=True)
        self.router = Linear(
            ctx, hidden_size, {router: logits}, has_bias=has_bias, role=Role.ROUTER
        )
        sizes = (hidden_size, intermediate_size, num_experts, experts_per_token)
        self.experts = Experts(ctx, *sizes, names=names, has_bias=has_bias, activation=activation)
        spec = ctx.spec(num_experts=num_experts, experts_per_token=experts_per_token)
        route = ctx.ops.resolve(route_topk, spec)
        self._route = partial(route, k=experts_per_token, is_normalized=is_normalized)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the layer's output. [T, D]"""
        weights_Tk, experts_Tk = self._route(self.router(x_TD))
        return self.experts(x_TD, weights_Tk, experts_Tk)


class Experts(Layer):
    """The matrices ``experts.{number}.{name}.weight``.

    Each rank has some of the features between every expert's matrices, and the results are summed
    over the ranks. All are kept in one layout: dense where the matrices would differ.

    Args:
        ctx: What to build with.
        hidden_size: D.
        intermediate_size: Features between an expert's matrices, over all ranks.
        num_experts: How many there are.
        experts_per_token: k.
        names: What the checkpoint calls an expert's matrices; without a gate these have none.
        has_bias: Whether each has a bias, ``experts.{number}.{name}.bias``.
        activation: Of the gate.

    Raises:
        ConfigError: The features between do not divide among the ranks.
    """

    def __init__(
        self,
        ctx: Context,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        experts_per_token: int,
        *,
        names: Mapping[Matrix, str] = QWEN_NAMES,
        has_bias: bool = False,
        activation: Activation = SILU,
    ) -> None:
        self._ctx = ctx
        self._has_bias, self._activation = has_bias, activation
        self._is_gated = "gate" in names
        self._hidden_size, self._intermediate_size = hidden_size, intermediate_size
        self._num_experts, self._experts_per_token = num_experts, experts_per_token
        self._between = split_evenly("an expert", intermediate_size, ctx.tp)
        self._places: dict[str, tuple[int, Matrix]] = {
            f"experts.{expert}.{name}": (expert, matrix)
            for expert in range(num_experts)
            for matrix, name in names.items()
        }
        self._stored: Mapping[str, Layout] = {}
        self._kept = Layout()
        self._provider: ExpertsProvider | None = None

    @property
    def provider(self) -> ExpertsProvider:
        """The packed experts, once allocated."""
        assert self._provider is not None, "experts are used before they are allocated"
        return self._provider

    def forward(self, x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor) -> Tensor:
        """Return each token's weighted sum over its experts. [T, D]"""
        y_TD = self.provider(x_TD, weights_Tk, experts_Tk)
        return self._ctx.tp.all_reduce(y_TD) if self._ctx.tp.size > 1 else y_TD

    def leaves(self) -> Sequence[Leaf]:
        """Return every expert's matrices, and their biases."""
        inwards = (self._intermediate_size, self._hidden_size)
        found: list[Leaf] = []
        for name, (_, matrix) in self._places.items():
            shape = inwards[::-1] if matrix == "down" else inwards
            found.append(Leaf(f"{name}.weight", shape, Role.MATRIX))
            if self._has_bias:
                found.append(Leaf(f"{name}.bias", shape[:1], Role.BIAS))
        return found

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Build the provider."""
        self._stored = layouts
        kept = {
            layout_on_rank(self._ctx, name, layouts[f"{name}.weight"], self._inputs_of(matrix).size)
            for name, (_, matrix) in self._places.items()
        }
        self._kept = shared_layout(kept)
        spec = ExpertsSpec(
            hidden_size=self._hidden_size,
            intermediate_size=self._between.size,
            num_experts=self._num_experts,
            experts_per_token=self._experts_per_token,
            dtype=self._ctx.dtype,
            layout=self._kept.name,
            group_size=self._kept.group_size,
            has_bias=self._has_bias,
            activation=self._activation,
            is_gated=self._is_gated,
        )
        self._provider = self._ctx.ops.resolve(experts, spec.as_spec())(spec, self._ctx.device)

    def load(self, name: str, source: Source) -> None:
        """Take this rank's rows of a gate or up matrix, or its columns of a down matrix."""
        whole, _, kind = name.rpartition(".")
        expert, matrix = self._places[whole]
        if kind == "bias":
            self._load_bias(source, expert, matrix)
            return
        whole_layout, inputs = self._stored[name], self._inputs_of(matrix)
        stored = layout_of_share(whole_layout, inputs.size)
        rows = Span(0, self._hidden_size) if matrix == "down" else self._between
        for offset, part in read_span(source, rows):
            if inputs.size < source.shape[1]:
                part = narrow_inputs(part, whole_layout, inputs.begin, inputs.end)
            if self._kept != stored:
                part = {n: t.to(self._ctx.device.torch_device) for n, t in part.items()}
            part = convert(part, stored, self._kept, self._ctx.dtype)
            self.provider.load(part, expert, matrix, offset)

    def _load_bias(self, source: Source, expert: int, matrix: Matrix) -> None:
        """Take a bias; of ranks whose results are summed, only the first adds that of down."""
        if matrix == "down" and self._ctx.tp.rank > 0:
            return
        rows = Span(0, self._hidden_size) if matrix == "down" else self._between
        bias = source.read(rows.begin, rows.end)["weight"].to(self._ctx.dtype)
        self.provider.load_bias(bias, expert, matrix, 0)

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed experts."""
        return self.provider.num_bytes

    def _inputs_of(self, matrix: Matrix) -> Span:
        return self._between if matrix == "down" else Span(0, self._hidden_size)
