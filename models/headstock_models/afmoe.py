"""AfMoE (Arcee Trinity): gated attention, norms around each sublayer, experts by sigmoid scores.

Three of four layers see a window; the others see all, and know no positions.

Shapes: T tokens in the step, D hidden size. Source: Arcee AI 2025, "Trinity"; names as in Hugging
Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Module
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.attention import StepBatch
from headstock.ops.gates import gate_features
from headstock.ops.routing import Routing
from headstock_models.llama import (
    FULL,
    SLIDING,
    WINDOWED,
    DecoderAttention,
    LlamaConfig,
    LlamaForCausalLM,
    Rotaries,
)


class AfmoeConfig(LlamaConfig, frozen=True, kw_only=True):
    head_dim: int | None = 128
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = 1024
    global_attn_every_n_layers: int = 4
    moe_intermediate_size: int = 1408
    num_dense_layers: int = 1
    num_experts: int = 64
    num_experts_per_tok: int = 6
    num_shared_experts: int = 2
    route_scale: float = 1.0
    mup_enabled: bool = False
    has_qk_norm: ClassVar[bool] = True

    @property
    def embedding_scale(self) -> float:
        return self.hidden_size**0.5 if self.mup_enabled else 1.0

    def usual_kind(self, number: int) -> str:
        """Return what layer ``number`` is: every n-th sees all."""
        return SLIDING if (number + 1) % self.global_attn_every_n_layers else FULL

    def rotates(self, number: int) -> bool:
        return self.kind(number) == SLIDING

    def make_qkv(self, ctx: Context) -> Linear:
        """Return the product that makes queries, keys, values, and gates of the output."""
        heads, kv_heads, d = self.sizes
        wide = Part(heads * d, unit=d)
        kv = Part(kv_heads * d, unit=d, is_shared=True)
        leaves = {"q_proj": wide, "k_proj": kv, "v_proj": kv, "gate_proj": wide}
        return Linear(ctx, self.hidden_size, leaves)

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if number < self.num_dense_layers:
            return super().make_mlp(ctx, number)
        size, between, shared = self.hidden_size, self.moe_intermediate_size, None
        if self.num_shared_experts:
            shared = GatedMLP(ctx, size, between * self.num_shared_experts)
            shared.alias = "shared_experts"
        routing = Routing(
            k=self.num_experts_per_tok,
            scores="sigmoid",
            is_normalized=True,
            factor=self.route_scale,
        )
        given = {"bias_leaf": "expert_bias", "shared": shared, "router": "router.gate"}
        return RoutedMoE(ctx, size, between, self.num_experts, routing, **given)

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return AfmoeLayer(ctx, self, rotaries, number)


class GatedAttention(DecoderAttention):
    """W_o (attend(W_qkv x) · sigmoid(W_gate x))."""

    def __init__(self, ctx: Context, c: LlamaConfig, rotaries: Rotaries, number: int) -> None:
        super().__init__(ctx, c, rotaries, number)
        self._gate_size = self.attend.num_heads * self.attend.head_dim
        self._gate = ctx.ops.resolve(gate_features, ctx.spec())

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        both_TC = self.qkv(x_TD)
        qkv_TC, gate_TC = both_TC[:, : -self._gate_size], both_TC[:, -self._gate_size :]
        y_TC = self._gate(self.attend(qkv_TC, batch), gate_TC)
        return self.out(keep(y_TC, batch))


class AfmoeLayer(Module):
    """Attention, then the feed-forward layer, each between two norms."""

    def __init__(self, ctx: Context, c: AfmoeConfig, rotaries: Rotaries, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = c.make_norm(ctx, "input_layernorm")
        self.self_attn = GatedAttention(ctx, c, rotaries, number)
        self.attn_norm = c.make_norm(ctx, "post_attention_layernorm")
        self.mlp_norm = c.make_norm(ctx, "pre_mlp_layernorm")
        self.mlp = c.make_mlp(ctx, number)
        self.out_norm = c.make_norm(ctx, "post_mlp_layernorm")

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD, _ = self.attn_norm(self.self_attn(x_TD, batch, self.keep), None)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        x_TD, _ = self.out_norm(self.mlp(x_TD), None)
        return x_TD, total_TD


class AfmoeForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = AfmoeConfig
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        **WINDOWED,
        "attention_bias": (False,),
        "score_func": ("sigmoid",),
        "route_norm": (True,),
        "n_group": (1,),
        "topk_group": (1,),
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers 5 may save num_experts by another name.
        super().__init__(ctx, {"num_experts": config.get("num_local_experts"), **config})
