"""DeepSeek V2 and V2 Lite: V3 with experts chosen by the softmax of all, perhaps within groups.

Source: DeepSeek-AI 2024, "DeepSeek-V2"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstock.graph.config import require
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.ops.routing import Routing
from headstock_models.deepseek_v3 import DeepseekConfig, DeepseekV3ForCausalLM
from headstock_models.sigmoid_experts import routed_moe


class DeepseekV2Config(DeepseekConfig, frozen=True, kw_only=True):
    topk_method: str = "greedy"

    def make_moe(self, ctx: Context) -> Module:
        is_grouped = self.topk_method == "group_limited_greedy"
        routing = Routing(
            k=self.num_experts_per_tok,
            num_groups=self.n_group if is_grouped else 1,
            groups_kept=self.topk_group if is_grouped else 1,
            factor=self.routed_scaling_factor,
        )
        return routed_moe(ctx, self, routing, bias_leaf="")


class DeepseekV2ForCausalLM(DeepseekV3ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = DeepseekV2Config

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, hidden_act=("silu",), scoring_func=("softmax",), moe_layer_freq=(1,))
        require(config, topk_method=("greedy", "group_limited_greedy"), norm_topk_prob=(False,))
        self.build(ctx, config)
