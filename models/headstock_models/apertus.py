"""Apertus: Llama without gates, whose activation xIELU has numbers of its own in each layer.

Shapes: T tokens in the step, D hidden size. Sources: Swiss AI Initiative 2025, "Apertus"; Huang and
Schlag 2024, "Deriving Activation Functions Using Integration"; names as in Hugging Face
transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.context import Context
from headstock.graph.feed_forward import MLP
from headstock.graph.last import LastOfRows
from headstock.graph.module import Layer, Leaf, Module
from headstock.graph.source import Source
from headstock.ops.activation import activate
from headstock.ops.activation_kinds import Activation, xielu
from headstock.quantization.plan import Layout, Role
from headstock_models.llama import (
    DecoderAttention,
    DecoderLayer,
    LlamaConfig,
    LlamaForCausalLM,
    Rotaries,
)

ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12_000_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
"""Where a configuration has none."""
ALPHA_P, ALPHA_N, BETA, EPS = (f"act_fn.{name}" for name in ("alpha_p", "alpha_n", "beta", "eps"))
PARTS = {"qk_norm": (True,), "post_norm": (False,), "mlp_bias": (False,)}
USUAL = {ALPHA_P: 0.0, ALPHA_N: 0.0, BETA: 0.5, EPS: -1e-6}


class ApertusConfig(LlamaConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5
    has_qk_norm: ClassVar[bool] = True
    rope_theta_default: ClassVar[float] = ROPE["rope_theta"]

    def make_mlp(self, ctx: Context, number: int) -> Module:
        return XieluMLP(ctx, self.hidden_size, self.intermediate_size)

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return ApertusLayer(ctx, self, rotaries, number)


class XieluNumbers(Layer):
    """What a layer's xIELU is made of: ``act_fn.alpha_p`` and so on, each one number."""

    def __init__(self) -> None:
        self._numbers = dict(USUAL)
        self.activation = self._make()

    def _make(self) -> Activation:
        numbers = self._numbers
        alpha_p, alpha_n = (_softplus(numbers[name]) for name in (ALPHA_P, ALPHA_N))
        return xielu(alpha_p, numbers[BETA] + alpha_n, numbers[BETA], numbers[EPS])

    def leaves(self) -> Sequence[Leaf]:
        """Return the numbers; those that are not learned may be left out."""
        fixed = (BETA, EPS)
        return [Leaf(name, (1,), Role.SCALE, is_optional=name in fixed) for name in USUAL]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: numbers need no room."""

    def load(self, name: str, source: Source) -> None:
        """Take a number."""
        self._numbers[name] = float(source.read(0, 1)["weight"].item())
        self.activation = self._make()

    @property
    def num_bytes(self) -> int:
        """None on the device."""
        return 0


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


class XieluMLP(MLP):
    """W_down xIELU(W_up x)."""

    def __init__(self, ctx: Context, hidden_size: int, intermediate_size: int) -> None:
        self.numbers = XieluNumbers()
        super().__init__(ctx, hidden_size, intermediate_size, self.numbers.activation)
        size, features = intermediate_size // ctx.tp.size, self.numbers.activation.features
        self._run = ctx.ops.resolve(activate, ctx.spec(features=features, size=size))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the layer's output. [T, D]"""
        return self.down(self._run(self.up(x_TD), activation=self.numbers.activation))


class ApertusLayer(DecoderLayer):
    """A decoder's layer whose norms have names of their own."""

    def __init__(self, ctx: Context, c: LlamaConfig, rotaries: Rotaries, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = c.make_norm(ctx, "attention_layernorm")
        self.self_attn = DecoderAttention(ctx, c, rotaries, number)
        self.mlp_norm = c.make_norm(ctx, "feedforward_layernorm")
        self.mlp = c.make_mlp(ctx, number)


class ApertusForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = ApertusConfig
    accepted: ClassVar = {**LlamaForCausalLM.accepted, "hidden_act": ("xielu",), **PARTS}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        has_rope = config.get("rope_parameters") or config.get("rope_scaling")
        super().__init__(ctx, config if has_rope else {**config, "rope_parameters": ROPE})

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors; some numbers are kept without a dimension."""
        return {n: x if x.shape else replace(x, shape=(1,)) for n, x in index.items()}
