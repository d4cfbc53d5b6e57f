"""GLM-5 to 5.2: DeepSeek V3.2 whose layers may share what an indexer chose.

Source: GLM team 2026, "GLM-5"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstock.errors import UnsupportedError
from headstock.graph.config import require
from headstock.graph.context import Context
from headstock_models.deepseek_v32 import DeepseekV32Config, DeepseekV32ForCausalLM

FULL, SHARED = "full", "shared"
BY_LETTER = {"F": FULL, "S": SHARED}


class GlmMoeDsaConfig(DeepseekV32Config, frozen=True, kw_only=True):
    q_lora_rank: int = 2048
    n_group: int = 1
    topk_group: int = 1
    rms_norm_eps: float = 1e-5
    index_n_heads: int = 32
    indexer_types: tuple[str, ...] = ()
    index_topk_freq: int = 1
    index_skip_topk_offset: int = 2
    indexer_rope_interleave: bool = True

    def has_indexer(self, number: int) -> bool:
        if self.indexer_types:
            return self.indexer_types[number] == FULL
        return max(number - self.index_skip_topk_offset + 1, 0) % max(self.index_topk_freq, 1) == 0


class GlmMoeDsaForCausalLM(DeepseekV32ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = GlmMoeDsaConfig

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        pattern = config.get("index_topk_pattern") or ()
        kinds = config.get("indexer_types") or [BY_LETTER.get(kind, kind) for kind in pattern]
        for kind in kinds:
            require({"indexer_types": kind}, indexer_types=(FULL, SHARED))
        if kinds and kinds[0] != FULL:
            raise UnsupportedError(
                "The model's configuration has indexer_types[0] = 'shared'; the first layer has"
                " none before it whose tokens it could read.",
                remedy="Compare its config.json with the model's original.",
            )
        super().__init__(ctx, {**config, "indexer_types": kinds})
