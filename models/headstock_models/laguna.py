"""Laguna: softplus gates on attention, heads that differ in number, many small experts.

Shapes: T tokens in the step, D hidden size, C features of all heads. Source: Poolside 2026,
``LagunaModel`` of Hugging Face transformers; names as on the hub, or as transformers calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.attention import Attention
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, Part, QKVLinear
from headstock.graph.module import Module
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.attention import StepBatch
from headstock.ops.gates import gate_by_softplus
from headstock.ops.routing import Routing
from headstock_models.llama import (
    FULL,
    SLIDING,
    WINDOWED,
    LlamaConfig,
    LlamaForCausalLM,
    Rotaries,
    rotaries_of_kinds,
)
from headstock_models.sigmoid_experts import BIAS_LEAF
from headstock_models.stored_rows import renamed

DENSE, SPARSE = "dense", "sparse"
PER_HEAD = (True, "per-head")
"""Values of ``gating`` with a gate for each head; otherwise there is one for each feature."""
USUAL_ROPE: Mapping[str, Mapping[str, Any]] = {
    FULL: {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5},
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
}
NAMES = (
    (r"\.mlp\.experts\.e_score_correction_bias$", f".mlp.{BIAS_LEAF}"),
    (r"\.mlp\.shared_expert\.", ".mlp.shared_experts."),
)
"""What checkpoints call tensors, to what they are called here."""


class LagunaConfig(LlamaConfig, frozen=True, kw_only=True):
    vocab_size: int = 100_352
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 40
    num_attention_heads: int = 48
    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    sliding_window: int | None = 512
    gating: bool | str = True
    num_attention_heads_per_layer: tuple[int, ...] = ()
    mlp_layer_types: tuple[str, ...] = ()
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts: int = 256
    num_experts_per_tok: int = 8
    moe_routed_scaling_factor: float = 1.0
    moe_router_logit_softcapping: float = 0.0

    def heads(self, number: int) -> int:
        """Return the query heads of layer ``number``."""
        by_layer = self.num_attention_heads_per_layer
        return by_layer[number] if by_layer else self.num_attention_heads

    def usual_kind(self, number: int) -> str:
        return FULL

    def has_experts(self, number: int) -> bool:
        """Whether layer ``number`` has them; without a list all but the first do."""
        kinds = self.mlp_layer_types
        return kinds[number] == SPARSE if kinds else number > 0

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if not self.has_experts(number):
            return GatedMLP(ctx, self.hidden_size, self.intermediate_size)
        shared = GatedMLP(ctx, self.hidden_size, self.shared_expert_intermediate_size)
        shared.alias = "shared_experts"
        routing = Routing(
            k=self.num_experts_per_tok,
            scores="sigmoid",
            is_normalized=True,
            factor=self.moe_routed_scaling_factor,
        )
        sizes = (self.hidden_size, self.moe_intermediate_size, self.num_experts)
        cap = self.moe_router_logit_softcapping or None
        return RoutedMoE(ctx, *sizes, routing, bias_leaf=BIAS_LEAF, shared=shared, router_cap=cap)

    def make_attention(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return LagunaAttention(ctx, self, rotaries, number)


class LagunaAttention(Module):
    """W_o (attend(W_qkv x) · softplus(W_g x)), with a gate for each head or each feature."""

    def __init__(self, ctx: Context, c: LagunaConfig, rotaries: Rotaries, number: int) -> None:
        heads, (_, kv_heads, d), has_bias = c.heads(number), c.sizes, c.attention_bias
        self.qkv = QKVLinear(ctx, c.hidden_size, heads, kv_heads, d, has_bias=has_bias)
        gates = Part(heads) if c.gating in PER_HEAD else Part(heads * d, unit=d)
        self.gates = Linear(ctx, c.hidden_size, {"g_proj": gates})
        self.attend = Attention(
            ctx,
            heads,
            kv_heads,
            d,
            rotary=rotaries[c.kind(number)],
            qk_norm=c.rms_norm_eps,
            window=c.window(number),
        )
        self._gate = ctx.ops.resolve(gate_by_softplus, ctx.spec())
        leaves = {"o_proj": c.hidden_size}
        self.out = Linear(ctx, heads * d, leaves, split="in", has_bias=has_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        y_TC = self._gate(self.attend(self.qkv(x_TD), batch), self.gates(x_TD))
        return self.out(keep(y_TC, batch))


class LagunaForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = LagunaConfig
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        **WINDOWED,
        "partial_rotary_factor": None,
        "mlp_layer_types": (DENSE, SPARSE),
        "gating": (*PER_HEAD, "per-element"),
        "moe_apply_router_weight_on_input": (False,),
        "use_bidirectional_attention": (False,),
    }

    def rotaries(self, ctx: Context, c: LlamaConfig, config: Mapping[str, Any]) -> Rotaries:
        """Return the tables of angles by kind of layer: each kind has parameters of its own."""
        given = {**config, "rope_parameters": config.get("rope_parameters") or USUAL_ROPE}
        kinds = {c.kind(number) for number in range(c.num_hidden_layers)}
        return rotaries_of_kinds(ctx, c, given, kinds)

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names."""
        return renamed(index, NAMES)
