"""Olmo 3: Olmo 2 with windows in three of four layers, whose angles are never scaled.

Source: Olmo team 2025, "Olmo 3"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.context import Context
from headstock.graph.rotary import Rotary
from headstock_models.llama import FULL, SLIDING, WINDOWED, LlamaConfig, Rotaries
from headstock_models.olmo2 import Olmo2Config, Olmo2ForCausalLM


class Olmo3Config(Olmo2Config, frozen=True, kw_only=True):
    sliding_window: int | None = 4096
    rope_theta_default: ClassVar[float] = 500_000.0

    def usual_kind(self, number: int) -> str:
        """Return what layer ``number`` is: every fourth one sees all."""
        return SLIDING if (number + 1) % 4 else FULL


class Olmo3ForCausalLM(Olmo2ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Olmo3Config
    accepted: ClassVar = {**Olmo2ForCausalLM.accepted, **WINDOWED}

    def rotaries(self, ctx: Context, c: LlamaConfig, config: Mapping[str, Any]) -> Rotaries:
        """Return the tables of angles by kind of layer; those of full layers may be scaled."""
        given = dict(config.get("rope_parameters") or {})
        if SLIDING not in given:  # As on the hub: one base, and one scaling, for full layers.
            scaling = given or dict(config.get("rope_scaling") or {})
            theta = scaling.get("rope_theta") or config["rope_theta"]
            given = {SLIDING: {"rope_theta": theta}, FULL: {**scaling, "rope_theta": theta}}
        config = {**config, "rope_scaling": None, "rope_parameters": given}
        size = c.sizes[2]
        return {kind: Rotary(ctx, size, config, layer_kind=kind) for kind in (SLIDING, FULL)}
