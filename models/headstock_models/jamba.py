"""Jamba: state spaces of Mamba 1 in most layers, else attention without positions; experts.

Shapes: T tokens in the step, D hidden size, I features between.
Source: Lieber et al. 2024, "Jamba"; names as in Hugging Face transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor

from headstock.graph.arranged import ArrangedLinear, features
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear
from headstock.graph.mamba import SelectiveScan
from headstock.graph.module import Module
from headstock.graph.moe import MoE
from headstock.graph.norm import RMSNorm
from headstock.graph.short_convolution import ShortConvolution
from headstock.ops.activation import activate
from headstock.ops.attention import StepBatch
from headstock.ops.gates import gate_by_silu
from headstock.ops.outputs import join_features
from headstock_models.llama import (
    LlamaConfig,
    LlamaForCausalLM,
    Rotaries,
)


class JambaConfig(LlamaConfig, frozen=True, kw_only=True):
    num_experts: int = 16
    num_experts_per_tok: int = 2
    expert_layer_period: int = 2
    expert_layer_offset: int = 1
    attn_layer_period: int = 8
    attn_layer_offset: int = 4
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_dt_rank: int | Literal["auto"] = "auto"
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False

    @property
    def step_rank(self) -> int:
        """Features that steps are made of."""
        rank = self.mamba_dt_rank
        return math.ceil(self.hidden_size / 16) if rank == "auto" else rank

    def has_attention(self, number: int) -> bool:
        """Whether layer ``number`` has attention, and no states."""
        return number % self.attn_layer_period == self.attn_layer_offset

    def has_experts(self, number: int) -> bool:
        """Whether layer ``number`` has experts."""
        is_routed = number % self.expert_layer_period == self.expert_layer_offset
        return is_routed and self.num_experts > 1

    def rotates(self, number: int) -> bool:
        return False  # states know the order

    def make_norm(self, ctx: Context, leaf: str) -> RMSNorm:
        leaf = {"norm": "final_layernorm", "post_attention_layernorm": "pre_ff_layernorm"}.get(
            leaf, leaf
        )
        return RMSNorm(ctx, self.hidden_size, leaf=leaf, eps=self.rms_norm_eps)

    def make_mlp(self, ctx: Context, number: int) -> Module:
        sizes = (self.hidden_size, self.intermediate_size)
        chosen = (self.num_experts, self.num_experts_per_tok)
        mlp: Module = (
            MoE(ctx, *sizes, *chosen, is_normalized=False, router="router")
            if self.has_experts(number)
            else GatedMLP(ctx, *sizes)
        )
        mlp.alias = "feed_forward"
        return mlp

    def make_attention(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        if self.has_attention(number):
            return super().make_attention(ctx, rotaries, number)
        return JambaMamba(ctx, self)


class JambaMamba(Module):
    """W_out of what states read, gated; b, c and steps are normalised first."""

    alias = "mamba"

    def __init__(self, ctx: Context, c: JambaConfig) -> None:
        size, rank, states = c.hidden_size, c.step_rank, c.mamba_d_state
        between, norm = c.mamba_expand * size, partial(RMSNorm, ctx, eps=c.rms_norm_eps)
        has_bias = c.mamba_proj_bias
        halves = [features(between), features(between, first=between)]
        self.inputs = ArrangedLinear(ctx, size, {"in_proj": halves}, has_bias=has_bias)
        width, conv_bias = c.mamba_d_conv, c.mamba_conv_bias
        conv = {"leaf": "conv1d", "has_bias": conv_bias, "is_gated": False}
        self.convolve = ShortConvolution(ctx, between, width, **conv)
        # Of all features: every rank has the sums.
        self.select = Linear(ctx, between, {"x_proj": rank + 2 * states}, split="in")
        self.step_norm = norm(rank, leaf="dt_layernorm")
        self.b_norm, self.c_norm = (norm(states, leaf=f"{x}_layernorm") for x in "bc")
        self.steps = Linear(ctx, rank, {"dt_proj": between}, has_bias=True)
        self.scan = SelectiveScan(ctx, between, states)
        self.out = Linear(ctx, between, {"out_proj": size}, split="in", has_bias=has_bias)
        self._between, self._sizes = between // ctx.tp.size, (rank, states, states)
        self._silu = ctx.ops.resolve(activate, ctx.spec(size=self._between))
        self._join = ctx.ops.resolve(join_features, ctx.spec())
        self._gate = ctx.ops.resolve(gate_by_silu, ctx.spec())

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        x_TI, gate_TI = self.inputs(x_TD).split(self._between, 1)
        x_TI = self._silu(self.convolve(x_TI, batch))
        step_TR, b_TN, c_TN = self.select(x_TI).split(self._sizes, 1)
        dt_TI = self.steps(self.step_norm(step_TR, None)[0])
        bc_TX = self._join(self.b_norm(b_TN, None)[0], self.c_norm(c_TN, None)[0])
        y_TI = self.scan(x_TI, dt_TI, bc_TX, batch)
        return self.out(self._gate(keep(y_TI, batch), keep(gate_TI, batch)))


class JambaForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = JambaConfig
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        "layer_types": None,
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "mamba_inner_layernorms": (True,),
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # Which layers have attention follows from a period and an offset; transformers may write
        # the list as well, and may save num_experts by another name.
        named = {"num_experts": config.get("num_local_experts"), **config, "layer_types": None}
        super().__init__(ctx, named)

    def rotaries(self, ctx: Context, c: LlamaConfig, config: Mapping[str, Any]) -> Rotaries:
        """Return none: nothing rotates."""
        return {}
