"""Mixtral: Mistral with a mixture of experts in every layer.

Source: Jiang et al. 2024, "Mixtral of Experts"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.moe import MoE
from headstock_models.mistral import MistralConfig, MistralForCausalLM


class MixtralConfig(MistralConfig, frozen=True, kw_only=True):
    num_local_experts: int = 8
    num_experts_per_tok: int = 2

    def make_mlp(self, ctx: Context, number: int) -> Module:
        mlp = MoE(
            ctx,
            self.hidden_size,
            self.intermediate_size,
            self.num_local_experts,
            self.num_experts_per_tok,
            is_normalized=True,
            names={"gate": "w1", "up": "w3", "down": "w2"},
        )
        mlp.alias = "block_sparse_moe"
        return mlp


class MixtralForCausalLM(MistralForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = MixtralConfig
