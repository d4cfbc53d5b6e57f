"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with experts, and one that every token has, weighed by a gate.

Source: Qwen team 2024, "Qwen2 Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.routing import Routing
from headstock_models.qwen2 import Qwen2Config, Qwen2ForCausalLM


class Qwen2MoeConfig(Qwen2Config, frozen=True, kw_only=True):
    num_experts: int
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = 5632
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    def make_mlp(self, ctx: Context, number: int) -> Module:
        is_dense = number in self.mlp_only_layers or (number + 1) % self.decoder_sparse_step
        if is_dense or not self.num_experts:
            return super().make_mlp(ctx, number)
        shared = GatedMLP(ctx, self.hidden_size, self.shared_expert_intermediate_size)
        shared.alias = "shared_expert"
        return RoutedMoE(
            ctx,
            self.hidden_size,
            self.moe_intermediate_size,
            self.num_experts,
            Routing(k=self.num_experts_per_tok, is_normalized=self.norm_topk_prob),
            shared=shared,
            shared_gate="shared_expert_gate",
        )


class Qwen2MoeForCausalLM(Qwen2ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Qwen2MoeConfig

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers 5 saves what the hub calls num_experts by another name.
        super().__init__(ctx, {"num_experts": config.get("num_local_experts"), **config})
