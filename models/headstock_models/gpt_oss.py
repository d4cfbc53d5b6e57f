"""gpt-oss: Llama with sinks, windows in every other layer, and mixtures of experts with biases.

Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.moe import MoE
from headstock.ops.activation_kinds import clipped_swiglu
from headstock_models.llama import FULL, SLIDING, WINDOWED, LlamaConfig, LlamaForCausalLM

ROPE = {
    "rope_type": "yarn",
    "rope_theta": 150_000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Where a configuration has none."""


class GptOssConfig(LlamaConfig, frozen=True, kw_only=True):
    head_dim: int | None = 64
    rms_norm_eps: float = 1e-5
    attention_bias: bool = True
    num_local_experts: int = 128
    num_experts_per_tok: int = 4
    sliding_window: int | None = 128
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702
    has_sinks: ClassVar[bool] = True

    def usual_kind(self, number: int) -> str:
        """Return what layer ``number`` is: every other one sees a window."""
        return FULL if number % 2 else SLIDING

    def make_mlp(self, ctx: Context, number: int) -> Module:
        return MoE(
            ctx,
            self.hidden_size,
            self.intermediate_size,
            self.num_local_experts,
            self.num_experts_per_tok,
            is_normalized=True,
            router="router",
            has_bias=True,
            activation=clipped_swiglu(self.swiglu_limit, self.swiglu_alpha),
        )


class GptOssForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer."""

    config_type = GptOssConfig
    accepted: ClassVar = {**LlamaForCausalLM.accepted, **WINDOWED}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        has_rope = config.get("rope_parameters") or config.get("rope_scaling")
        super().__init__(ctx, config if has_rope else {**config, "rope_parameters": ROPE})
