"""Qwen3, dense: Llama with an RMS norm over each query and key head.

Source: Yang et al. 2025, "Qwen3 Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.config import require
from headstock.graph.context import Context
from headstock_models.llama import LlamaConfig, LlamaForCausalLM


class Qwen3Config(LlamaConfig, frozen=True, kw_only=True):
    head_dim: int | None = 128
    has_qk_norm: ClassVar[bool] = True


class Qwen3ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Qwen3Config

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, use_sliding_window=(False,))
        for kind in config.get("layer_types") or ():
            require({"layer_types": kind}, layer_types=("full_attention",))
        # Qwen3 names a window size that only use_sliding_window makes matter.
        super().__init__(ctx, {**config, "sliding_window": None})
