"""Mistral Small 4: DeepSeek V3's latent attention and experts, whose scores are a softmax.

Queries are scaled by their position, as Ministral 3's are. Source: Mistral AI 2026, "Mistral Small
4"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstock.checkpoint.files import StoredTensor
from headstock.graph.config import require
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.stacked import Stacked, split_stacked
from headstock.ops.routing import Routing
from headstock_models.deepseek_v3 import DeepseekConfig, DeepseekV3ForCausalLM
from headstock_models.sigmoid_experts import routed_moe

STACKS = {
    "mlp.experts.gate_up_proj": Stacked("mlp.experts", ("gate_proj", "up_proj")),
    "mlp.experts.down_proj": Stacked("mlp.experts", ("down_proj",)),
}
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""Where a configuration has none."""


class Mistral4Config(DeepseekConfig, frozen=True, kw_only=True):
    q_lora_rank: int | None = 1024
    kv_lora_rank: int = 256
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    n_routed_experts: int = 128
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    norm_topk_prob: bool = True

    def make_moe(self, ctx: Context) -> Module:
        routing = Routing(
            k=self.num_experts_per_tok,
            is_normalized=self.norm_topk_prob,
            num_groups=self.n_group,
            groups_kept=self.topk_group,
            group_best=2 if self.n_group > 1 else 1,
            factor=self.routed_scaling_factor,
        )
        return routed_moe(ctx, self, routing, bias_leaf="")


class Mistral4ForCausalLM(DeepseekV3ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Mistral4Config

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, hidden_act=("silu",), scoring_func=("softmax",), moe_layer_freq=(1,))
        has_rope = config.get("rope_parameters") or config.get("rope_scaling")
        self.build(ctx, config if has_rope else {**config, "rope_parameters": ROPE})

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors with a matrix for each expert."""
        return split_stacked(index, STACKS)
