"""MiniMax M2 to M2.7: experts by sigmoid scores, part of each head rotated, wide norms of q and k.

Source: MiniMax 2025, "MiniMax-M2"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from headstock.graph.build import Model
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.routing import Routing
from headstock_models.llama import LlamaConfig, LlamaForCausalLM


class MiniMaxM2Config(LlamaConfig, frozen=True, kw_only=True):
    head_dim: int | None = 128
    num_local_experts: int = 256
    num_experts_per_tok: int = 8
    has_wide_norm: ClassVar[bool] = True
    rope_theta_default: ClassVar[float] = 5_000_000.0

    def make_mlp(self, ctx: Context, number: int) -> Module:
        mlp = RoutedMoE(
            ctx,
            self.hidden_size,
            self.intermediate_size,
            self.num_local_experts,
            Routing(k=self.num_experts_per_tok, scores="sigmoid", is_normalized=True),
            bias_leaf="e_score_correction_bias",
            names={"gate": "w1", "up": "w3", "down": "w2"},
        )
        mlp.alias = "block_sparse_moe"
        return mlp


class MiniMaxM2ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = MiniMaxM2Config
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        "partial_rotary_factor": None,
        "use_qk_norm": (True,),
        "qk_norm_type": ("per_layer",),
        "scoring_func": ("sigmoid",),
        "use_routing_bias": (True,),
        "shared_intermediate_size": (0,),
        "attention_bias": (False,),
    }
    skip: Mapping[str, str] = {**Model.skip, r"^model\.mtp": "layers that draft tokens to come"}
