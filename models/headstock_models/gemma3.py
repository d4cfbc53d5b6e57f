"""Gemma 3, text: Gemma 2 with norms of queries and keys instead of caps, and two rotary bases.

Five of six layers see a window. Source: Gemma Team 2025, "Gemma 3 Technical Report"; names as in
Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.context import Context
from headstock.graph.rotary import Rotary
from headstock_models.gemma2 import (
    FULL,
    SLIDING,
    Gemma2Config,
    Gemma2ForCausalLM,
    Rotaries,
)


class Gemma3Config(Gemma2Config, frozen=True, kw_only=True):
    sliding_window_pattern: int = 6
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    has_qk_norm: ClassVar[bool] = True


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    """A decoder whose output layer is the embedding."""

    config_type = Gemma3Config

    def rotaries(self, ctx: Context, c: Gemma2Config, config: Mapping[str, Any]) -> Rotaries:
        """Return the tables of angles by kind of layer; full layers may be scaled."""
        assert isinstance(c, Gemma3Config), f"{c} is no configuration of Gemma 3"
        given = dict(config)
        if not given.get("rope_parameters"):  # As on the hub: one base a key, one scaling for full.
            scaling = dict(given.pop("rope_scaling", None) or {})
            given["rope_parameters"] = {
                SLIDING: {"rope_theta": c.rope_local_base_freq},
                FULL: {**scaling, "rope_theta": c.rope_theta},
            }
        return {kind: Rotary(ctx, c.head_dim, given, layer_kind=kind) for kind in (SLIDING, FULL)}
