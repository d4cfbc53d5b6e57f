"""Phi-3, Phi-4 and Phi-4-mini: Llama with fused matrices; perhaps part of a head is rotated.

Source: Abdin et al. 2024, "Phi-3 Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from headstock.graph.arranged import ArrangedLinear, Rows
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock_models.llama import LlamaConfig
from headstock_models.mistral import MistralForCausalLM


class Phi3Config(LlamaConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5

    def make_qkv(self, ctx: Context) -> Linear:
        heads, kv_heads, d = self.sizes
        q = Rows(first=0, size=d, stride=d, num_heads=heads)
        k = Rows(first=heads * d, size=d, stride=d, num_heads=kv_heads, is_shared=True)
        v = replace(k, first=(heads + kv_heads) * d)
        return ArrangedLinear(ctx, self.hidden_size, {"qkv_proj": [q, k, v]})

    def make_mlp(self, ctx: Context, number: int) -> Module:
        return GatedMLP(ctx, self.hidden_size, self.intermediate_size, is_fused=True)


class Phi3ForCausalLM(MistralForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Phi3Config
    accepted: ClassVar = {
        **MistralForCausalLM.accepted,
        "partial_rotary_factor": None,
        "attention_bias": (False,),
        "mlp_bias": (False,),
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # Its scaling is one of two lists of factors, by whatever name old files have for it.
        for key in ("rope_parameters", "rope_scaling"):
            rope = dict(config.get(key) or {})
            if (rope.get("rope_type") or rope.get("type")) in ("su", "yarn"):
                config = {**config, key: rope | {"rope_type": "longrope"}}
        super().__init__(ctx, config)
