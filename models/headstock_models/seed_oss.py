"""Seed-OSS: Llama with biases of queries, keys and values, and a head size of its own.

Source: ByteDance Seed team 2025, "Seed-OSS"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from headstock_models.llama import LlamaConfig, LlamaForCausalLM


class SeedOssConfig(LlamaConfig, frozen=True, kw_only=True):
    head_dim: int | None = 128
    attention_bias: bool = True
    attention_out_bias: bool = False

    @property
    def has_out_bias(self) -> bool:
        return self.attention_out_bias


class SeedOssForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = SeedOssConfig
