"""Falcon-H1: attention and state spaces of Mamba 2 side by side in every layer, and multipliers.

Shapes: T tokens in the step, D hidden size.
Source: Technology Innovation Institute 2025, "Falcon-H1"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear
from headstock.graph.mamba2 import Mamba2, Mamba2Sizes
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.ops.activation import silu_and_mul
from headstock.ops.attention import StepBatch
from headstock.ops.features import add_features, scale_features, weigh_features
from headstock_models.llama import FULL, DecoderAttention, LlamaForCausalLM, Rotaries
from headstock_models.mamba_layers import HybridConfig, step_limits

NORMS = {"post_attention_layernorm": "pre_ff_layernorm", "norm": "final_layernorm"}


class FalconH1Config(HybridConfig, frozen=True, kw_only=True):
    mamba_d_ssm: int | None = 1024
    mamba_norm_before_gate: bool = True
    mamba_rms_norm: bool = False
    projectors_bias: bool = False
    embedding_multiplier: float = 1.0
    lm_head_multiplier: float = 1.0
    mlp_multipliers: tuple[float, float] = (1.0, 1.0)
    key_multiplier: float = 1.0
    attention_in_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    ssm_multipliers: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0

    @property
    def attention_scale(self) -> float | None:
        """What multiplies q·k: inputs that are scaled scale queries and keys alike."""
        return self.sizes[2] ** -0.5 * self.key_multiplier * self.attention_in_multiplier**2

    @property
    def embedding_scale(self) -> float:
        return self.embedding_multiplier

    @property
    def logits_scale(self) -> float:
        return self.lm_head_multiplier

    @property
    def state_spaces(self) -> Mamba2Sizes:
        sizes = super().state_spaces
        if self.mamba_d_ssm is not None and not isinstance(self.mamba_d_head, int):
            sizes = replace(sizes, head_dim=self.mamba_d_ssm // self.mamba_n_heads)
        return replace(
            sizes,
            has_out_bias=self.projectors_bias,
            has_norm=self.mamba_rms_norm,
            is_gated_first=not self.mamba_norm_before_gate,
            multipliers=tuple(self.ssm_in_multiplier * by for by in self.ssm_multipliers),
        )

    def usual_kind(self, number: int) -> str:
        return FULL

    def make_norm(self, ctx: Context, leaf: str) -> RMSNorm:
        return RMSNorm(ctx, self.hidden_size, leaf=NORMS.get(leaf, leaf), eps=self.rms_norm_eps)

    def make_mlp(self, ctx: Context, number: int) -> Module:
        return ScaledMLP(ctx, self)

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return FalconH1Layer(ctx, self, rotaries, number)


class ScaledMLP(Module):
    """m' W_down(silu(m W_gate x) * (W_up x))."""

    alias = "feed_forward"

    def __init__(self, ctx: Context, c: FalconH1Config) -> None:
        size, has_bias = c.intermediate_size, c.mlp_bias
        leaves = {"gate_proj": size, "up_proj": size}
        self.gate_up = Linear(ctx, c.hidden_size, leaves, has_bias=has_bias)
        self.down = Linear(ctx, size, {"down_proj": c.hidden_size}, split="in", has_bias=has_bias)
        gate, down = c.mlp_multipliers
        here = size // ctx.tp.size
        factors = torch.tensor([gate] * here + [1.0] * here, dtype=ctx.dtype)
        weigh = ctx.ops.resolve(weigh_features, ctx.spec())
        self._weigh = partial(weigh, weight_A=factors.to(ctx.device.torch_device))
        self._activate = ctx.ops.resolve(silu_and_mul, ctx.spec(size=here))
        self._scale = partial(ctx.ops.resolve(scale_features, ctx.spec()), factor=down)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self._scale(self.down(self._activate(self._weigh(self.gate_up(x_TD)))))


class FalconH1Layer(Module):
    """x + m attention(norm(x)) + m' mamba(norm(x)), then the feed-forward layer."""

    def __init__(self, ctx: Context, c: FalconH1Config, rotaries: Rotaries, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = c.make_norm(ctx, "input_layernorm")
        self.self_attn = DecoderAttention(ctx, c, rotaries, number)
        self.mamba = Mamba2(ctx, c.state_spaces)
        self.mlp_norm = c.make_norm(ctx, "post_attention_layernorm")
        self.mlp = c.make_mlp(ctx, number)
        scale = ctx.ops.resolve(scale_features, ctx.spec())
        attention = c.attention_in_multiplier * c.attention_out_multiplier
        self._scale_attention = partial(scale, factor=attention)
        self._scale_states = partial(scale, factor=c.ssm_out_multiplier)
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        y_TD = self._scale_attention(self.self_attn(x_TD, batch, self.keep))
        z_TD = self._scale_states(self.mamba(x_TD, batch, self.keep))
        total_TD = self.keep(total_TD, batch)
        x_TD, total_TD = self.mlp_norm(self._add(y_TD, z_TD), total_TD)
        return self.mlp(x_TD), total_TD


class FalconH1ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = FalconH1Config
    accepted: ClassVar = {**LlamaForCausalLM.accepted, "attention_bias": (False,)}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        limits = step_limits(config.get("time_step_limit"))
        super().__init__(ctx, {**config, "layer_types": None, "time_step_limit": limits})
