"""Qwen3 with mixtures of experts in some layers, or all.

Source: Yang et al. 2025, "Qwen3 Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.moe import MoE
from headstock_models.qwen3 import Qwen3Config, Qwen3ForCausalLM


class Qwen3MoeConfig(Qwen3Config, frozen=True, kw_only=True):
    head_dim: int | None = None
    num_experts: int
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    def make_mlp(self, ctx: Context, number: int) -> Module:
        is_dense = number in self.mlp_only_layers or (number + 1) % self.decoder_sparse_step
        if is_dense or not self.num_experts:
            return super().make_mlp(ctx, number)
        sizes = (self.hidden_size, self.moe_intermediate_size)
        experts = (self.num_experts, self.num_experts_per_tok)
        return MoE(ctx, *sizes, *experts, is_normalized=self.norm_topk_prob)


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Qwen3MoeConfig
    accepted: ClassVar = {**Qwen3ForCausalLM.accepted, "use_sliding_window": (False,)}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers 5 saves what the hub calls num_experts by another name.
        super().__init__(ctx, {"num_experts": config.get("num_local_experts"), **config})
