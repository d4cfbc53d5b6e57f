"""Mistral 7B to Small 3, and Ministral 3: Llama, perhaps with a window in every layer.

Ministral 3 scales its queries by their position, which its rotary parameters say. Source: Jiang et
al. 2023, "Mistral 7B"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.context import Context
from headstock_models.llama import LlamaConfig, LlamaForCausalLM

MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""Where a configuration has none."""


class MistralConfig(LlamaConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5


class MistralForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = MistralConfig
    accepted: ClassVar = {**LlamaForCausalLM.accepted, "sliding_window": None, "layer_types": None}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # Every layer has the window, whatever the configuration calls its layers.
        super().__init__(ctx, {**config, "layer_types": None})


class Ministral3ForCausalLM(MistralForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        has_rope = config.get("rope_parameters") or config.get("rope_scaling")
        super().__init__(ctx, config if has_rope else {**config, "rope_parameters": MINISTRAL_ROPE})
