"""SmolLM3: Llama whose every fourth layer knows no positions.

Source: Bakouch et al. 2025, "SmolLM3"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from typing import ClassVar

from headstock_models.llama import FULL, SLIDING, WINDOWED, LlamaConfig, LlamaForCausalLM


class SmolLM3Config(LlamaConfig, frozen=True, kw_only=True):
    num_key_value_heads: int | None = 4
    tie_word_embeddings: bool = True
    use_sliding_window: bool = False
    no_rope_layers: tuple[int, ...] = ()
    no_rope_layer_interval: int = 4
    rope_theta_default: ClassVar[float] = 2_000_000.0

    def rotates(self, number: int) -> bool:
        """Whether layer ``number`` rotates: of the list's numbers 1 says so, despite its name."""
        if self.no_rope_layers:
            return bool(self.no_rope_layers[number])
        return (number + 1) % self.no_rope_layer_interval != 0

    def usual_kind(self, number: int) -> str:
        """Return what layer ``number`` is: those without positions may see a window."""
        return SLIDING if self.use_sliding_window and not self.rotates(number) else FULL

    def window(self, number: int) -> int | None:
        """Return what layer ``number`` sees; a size alone changes nothing."""
        return super().window(number) if self.use_sliding_window else None


class SmolLM3ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = SmolLM3Config
    accepted: ClassVar = {**LlamaForCausalLM.accepted, **WINDOWED}
