"""GLM-4.5, 4.6 and 4.7: Llama with experts by sigmoid scores, half of each head rotated.

Source: GLM team 2025, "GLM-4.5"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.build import Model
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock_models.llama import LlamaConfig, LlamaForCausalLM
from headstock_models.sigmoid_experts import sigmoid_moe


class Glm4MoeConfig(LlamaConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5
    moe_intermediate_size: int = 1408
    num_experts_per_tok: int = 8
    n_routed_experts: int = 128
    n_shared_experts: int = 1
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    first_k_dense_replace: int = 1
    use_qk_norm: bool = False
    rotary_share: ClassVar[float] = 0.5

    @property
    def norms_heads(self) -> bool:
        return self.use_qk_norm

    @property
    def has_out_bias(self) -> bool:
        return False

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if number < self.first_k_dense_replace:
            return super().make_mlp(ctx, number)
        return sigmoid_moe(ctx, self)


class Glm4MoeForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Glm4MoeConfig
    accepted: ClassVar = {**LlamaForCausalLM.accepted, "partial_rotary_factor": None}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers 5 may save what the hub calls n_routed_experts by another name.
        named = {"n_routed_experts": config.get("num_local_experts")}
        super().__init__(ctx, named | dict(config))
        drafts = rf"^model\.layers\.{config['num_hidden_layers']}\."
        self.skip = {**Model.skip, drafts: "a layer that drafts tokens to come"}
