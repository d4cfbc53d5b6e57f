"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values, and perhaps windows.

Source: Yang et al. 2024, "Qwen2 Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from typing import ClassVar

from headstock_models.llama import FULL, SLIDING, WINDOWED, LlamaConfig, LlamaForCausalLM


class Qwen2Config(LlamaConfig, frozen=True, kw_only=True):
    attention_bias: bool = True
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28

    @property
    def has_out_bias(self) -> bool:
        return False

    def usual_kind(self, number: int) -> str:
        """Return what layer ``number`` is; the first ones see all."""
        is_windowed = self.use_sliding_window and number >= self.max_window_layers
        return SLIDING if is_windowed else FULL

    def window(self, number: int) -> int | None:
        """Return what layer ``number`` sees; a size alone changes nothing."""
        return super().window(number) if self.use_sliding_window else None


class Qwen2ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Qwen2Config
    accepted: ClassVar = {**LlamaForCausalLM.accepted, **WINDOWED}
