"""Bamba: state spaces of Mamba 2 in most layers, attention in the others.

Source: IBM and others 2024, "Bamba"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock_models.llama import FULL, LlamaForCausalLM
from headstock_models.mamba_layers import STATE, HybridConfig, read_old_kinds

NORMS = {"post_attention_layernorm": "pre_ff_layernorm", "norm": "final_layernorm"}


class BambaConfig(HybridConfig, frozen=True, kw_only=True):
    attn_layer_indices: tuple[int, ...] = ()
    rotary_share: ClassVar[float] = 0.5

    def usual_kind(self, number: int) -> str:
        return FULL if number in self.attn_layer_indices else STATE

    def make_norm(self, ctx: Context, leaf: str) -> RMSNorm:
        return RMSNorm(ctx, self.hidden_size, leaf=NORMS.get(leaf, leaf), eps=self.rms_norm_eps)

    def make_mlp(self, ctx: Context, number: int) -> Module:
        mlp = GatedMLP(ctx, self.hidden_size, self.intermediate_size, has_bias=self.mlp_bias)
        mlp.alias = "feed_forward"
        return mlp


class BambaForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = BambaConfig
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        "layer_types": (FULL, STATE),
        "partial_rotary_factor": None,
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        super().__init__(ctx, read_old_kinds(config))
