"""GLM-4.7-Flash: DeepSeek V3 whose layers say themselves which have experts.

Source: GLM team 2026, "GLM-4.7-Flash"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstock.graph.config import require
from headstock.graph.context import Context
from headstock_models.deepseek_v3 import DeepseekConfig, DeepseekV3ForCausalLM

DENSE, SPARSE = "dense", "sparse"


class Glm4MoeLiteConfig(DeepseekConfig, frozen=True, kw_only=True):
    n_shared_experts: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.8
    first_k_dense_replace: int = 1
    rms_norm_eps: float = 1e-5
    mlp_layer_types: tuple[str, ...] = ()

    def is_dense(self, number: int) -> bool:
        """Whether layer ``number`` has no experts."""
        if self.mlp_layer_types:
            return self.mlp_layer_types[number] == DENSE
        return super().is_dense(number)


class Glm4MoeLiteForCausalLM(DeepseekV3ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Glm4MoeLiteConfig

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        for kind in config.get("mlp_layer_types") or ():
            require({"mlp_layer_types": kind}, mlp_layer_types=(DENSE, SPARSE))
        super().__init__(ctx, config)
