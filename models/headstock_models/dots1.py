"""dots.llm1: Qwen3 with experts by sigmoid scores, as DeepSeek V3 has them.

Source: rednote-hilab 2025, "dots.llm1"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock_models.llama import FULL, SLIDING, WINDOWED, LlamaConfig, LlamaForCausalLM
from headstock_models.sigmoid_experts import sigmoid_moe


class Dots1Config(LlamaConfig, frozen=True, kw_only=True):
    moe_intermediate_size: int = 1408
    num_experts_per_tok: int
    n_routed_experts: int
    n_shared_experts: int = 0
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    first_k_dense_replace: int = 0
    max_window_layers: int = 62
    has_qk_norm: ClassVar[bool] = True

    def usual_kind(self, number: int) -> str:
        """Return what layer ``number`` is: some of the last ones may see a window."""
        has_window = self.sliding_window and number >= self.max_window_layers
        return SLIDING if has_window else FULL

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if number < self.first_k_dense_replace:
            return super().make_mlp(ctx, number)
        return sigmoid_moe(ctx, self)


class Dots1ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Dots1Config
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        **WINDOWED,
        "scoring_func": ("sigmoid", "noaux_tc"),
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers 5 may save what the hub calls n_routed_experts by another name.
        super().__init__(ctx, {"n_routed_experts": config.get("num_local_experts"), **config})
