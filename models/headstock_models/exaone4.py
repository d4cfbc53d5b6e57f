"""Exaone 4: norms behind each sublayer and on q and k; layers that see all know no positions.

Source: LG AI Research 2025, "EXAONE 4.0"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from typing import ClassVar

from headstock_models.llama import FULL, SLIDING, WINDOWED, LlamaForCausalLM
from headstock_models.olmo2 import PostNormConfig


class Exaone4Config(PostNormConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = 4096
    sliding_window_pattern: str | int | None = 4
    has_qk_norm: ClassVar[bool] = True

    def usual_kind(self, number: int) -> str:
        """Return what layer ``number`` is; a pattern is every n-th, or letters such as LLLG."""
        pattern = self.sliding_window_pattern
        if not self.sliding_window or not pattern:
            return FULL
        if isinstance(pattern, str):
            is_last = number == self.num_hidden_layers - 1
            is_local = pattern[number % len(pattern)] == "L" and not is_last
        else:
            is_local = (number + 1) % pattern != 0
        return SLIDING if is_local else FULL

    def rotates(self, number: int) -> bool:
        """Whether layer ``number`` rotates: all do where there is no window."""
        return not self.sliding_window or self.kind(number) == SLIDING


class Exaone4ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Exaone4Config
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        **WINDOWED,
        "attention_bias": (False,),
        "mlp_bias": (False,),
    }
