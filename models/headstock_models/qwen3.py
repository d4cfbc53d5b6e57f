"""Qwen3, dense: Qwen2 with an RMS norm over each query and key head instead of biases.

Source: Yang et al. 2025, "Qwen3 Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from typing import ClassVar

from headstock_models.qwen2 import Qwen2Config, Qwen2ForCausalLM


class Qwen3Config(Qwen2Config, frozen=True, kw_only=True):
    head_dim: int | None = 128
    attention_bias: bool = False
    has_qk_norm: ClassVar[bool] = True

    @property
    def has_out_bias(self) -> bool:
        return self.attention_bias


class Qwen3ForCausalLM(Qwen2ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Qwen3Config
