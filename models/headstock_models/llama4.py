"""Llama 4, text: chunked attention with positions, full attention without, and experts.

Shapes: T tokens in the step, D hidden size.
Source: Meta 2025, "The Llama 4 herd"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.attention import Attention
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Module
from headstock.graph.moe import Experts
from headstock.graph.stacked import Stacked, split_stacked
from headstock.ops.attention import StepBatch
from headstock.ops.features import scale_tokens
from headstock.ops.routing import Routing, add_shared, route_experts
from headstock.quantization.plan import Role
from headstock_models.llama import (
    FULL,
    LlamaConfig,
    LlamaForCausalLM,
    Rotaries,
)

CHUNKS = "chunked_attention"
STACKS = {
    "experts.gate_up_proj": Stacked("experts", ("gate_proj", "up_proj"), has_inputs_first=True),
    "experts.down_proj": Stacked("experts", ("down_proj",), has_inputs_first=True),
}


class Llama4Config(LlamaConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5
    head_dim: int | None = 128
    intermediate_size_mlp: int = 16384
    num_local_experts: int = 16
    moe_layers: tuple[int, ...] | None = None
    interleave_moe_layer_step: int = 1
    use_qk_norm: bool = True
    no_rope_layers: tuple[int, ...] = ()
    no_rope_layer_interval: int = 4
    attention_chunk_size: int | None = 8192
    attn_temperature_tuning: bool = True
    floor_scale: int = 8192
    attn_scale: float = 0.1
    is_interleaved: ClassVar[bool] = True
    rope_theta_default: ClassVar[float] = 500_000.0

    def rotates(self, number: int) -> bool:
        """Whether layer ``number`` rotates: of the list's numbers 1 says so, despite its name."""
        if self.no_rope_layers:
            return bool(self.no_rope_layers[number])
        return (number + 1) % self.no_rope_layer_interval != 0

    def usual_kind(self, number: int) -> str:
        return CHUNKS if self.rotates(number) and self.attention_chunk_size else FULL

    def query_scales(self, ctx: Context) -> Tensor:
        """Return what multiplies queries of layers that know no positions. float32. [L]"""
        whole_L = ((torch.arange(ctx.limits.max_length) + 1.0) / self.floor_scale).floor()
        scales_L = torch.log1p(whole_L) * self.attn_scale + 1.0
        return scales_L.to(ctx.device.torch_device)

    def has_experts(self, number: int) -> bool:
        if self.moe_layers is not None:
            return number in self.moe_layers
        return (number + 1) % self.interleave_moe_layer_step == 0

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if self.has_experts(number):
            return InputScaledMoE(ctx, self)
        mlp = GatedMLP(ctx, self.hidden_size, self.intermediate_size_mlp)
        mlp.alias = "feed_forward"
        return mlp

    def make_attention(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return Llama4Attention(ctx, self, rotaries, number)


class Llama4Attention(Module):
    """W_o attend(norm(rotate(W_q x)), norm(rotate(W_k x)), W_v x), by chunks; or without both."""

    def __init__(self, ctx: Context, c: Llama4Config, rotaries: Rotaries, number: int) -> None:
        self.qkv = c.make_qkv(ctx)
        rotates, is_chunked = c.rotates(number), c.kind(number) == CHUNKS
        is_tuned = c.attn_temperature_tuning and not rotates
        # A norm without weights is the same before the rotation as behind it.
        self.attend = Attention(
            ctx,
            *c.sizes,
            rotary=rotaries[FULL] if rotates else None,
            qk_norm=c.rms_norm_eps if c.use_qk_norm and rotates else None,
            norm_leaves=(),
            window=c.attention_chunk_size if is_chunked else None,
            is_chunked=is_chunked,
            query_scale_L=c.query_scales(ctx) if is_tuned else None,
        )
        heads, _, head_dim = c.sizes
        leaves, has_bias = {"o_proj": c.hidden_size}, c.attention_bias
        self.out = Linear(ctx, heads * head_dim, leaves, split="in", has_bias=has_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        return self.out(keep(self.attend(self.qkv(x_TD), batch), batch))


class InputScaledMoE(Module):
    """A shared expert of x, and the best one of s · x, where s is the sigmoid of its logit."""

    alias = "feed_forward"

    def __init__(self, ctx: Context, c: Llama4Config) -> None:
        size, between, number = c.hidden_size, c.intermediate_size, c.num_local_experts
        logits = Part(number, unit=number, is_shared=True)
        self.router = Linear(ctx, size, {"router": logits}, role=Role.ROUTER)
        self.experts = Experts(ctx, size, between, number, 1)
        self.shared_expert = GatedMLP(ctx, size, between)
        spec = ctx.spec(num_experts=number, experts_per_token=1, num_groups=1)
        route = ctx.ops.resolve(route_experts, spec)
        self._route = partial(route, routing=Routing(k=1, scores="sigmoid"))
        self._scale = ctx.ops.resolve(scale_tokens, ctx.spec())
        self._add = ctx.ops.resolve(add_shared, ctx.spec())
        shape, where = (max(ctx.limits.max_tokens, ctx.limits.max_rows), 1), ctx.device.torch_device
        self._ones = torch.ones(shape, dtype=torch.float32, device=where)

    def forward(self, x_TD: Tensor) -> Tensor:
        scores_T1, experts_T1 = self._route(self.router(x_TD), None)
        ones_T1 = self._ones[: x_TD.shape[0]]
        y_TD = self.experts(self._scale(x_TD, scores_T1), ones_T1, experts_T1)
        return self._add(y_TD, self.shared_expert(x_TD), None)


class Llama4ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Llama4Config
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        "layer_types": (FULL, CHUNKS),
        "num_experts_per_tok": (1,),
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers 5 may save what the hub calls num_local_experts by another name.
        super().__init__(ctx, {"num_local_experts": config.get("num_experts"), **config})

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors with a matrix for each expert."""
        return split_stacked(index, STACKS)
