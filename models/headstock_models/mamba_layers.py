"""What decoders with state spaces of Mamba 2 have in common: their configuration, and layers.

Shapes: T tokens in the step, D hidden size.
Source: Dao and Gu 2024, "Transformers are SSMs"; names as in Hugging Face transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from headstock.graph.context import Context
from headstock.graph.mamba2 import Mamba2, Mamba2Sizes
from headstock.graph.module import Module
from headstock_models.llama import FULL, LlamaConfig, Rotaries

STATE = "linear_attention"
OLD_KINDS = {"mamba": STATE, "attention": FULL}
"""What old configurations call layers."""


class HybridConfig(LlamaConfig, frozen=True, kw_only=True):
    """Of decoders some of whose layers have state spaces, in the keys of Bamba."""

    rms_norm_eps: float = 1e-5
    mamba_n_heads: int = 128
    mamba_d_head: int | str | None = None
    mamba_n_groups: int = 1
    mamba_d_state: int = 256
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: tuple[float, float] | None = None

    def usual_kind(self, number: int) -> str:
        return STATE

    @property
    def state_spaces(self) -> Mamba2Sizes:
        """What the layers with state spaces are made of."""
        size = self.mamba_d_head
        if not isinstance(size, int):
            size = self.mamba_expand * self.hidden_size // self.mamba_n_heads
        return Mamba2Sizes(
            hidden_size=self.hidden_size,
            num_heads=self.mamba_n_heads,
            head_dim=size,
            num_groups=self.mamba_n_groups,
            state_size=self.mamba_d_state,
            kernel_size=self.mamba_d_conv,
            eps=self.rms_norm_eps,
            has_conv_bias=self.mamba_conv_bias,
            has_bias=self.mamba_proj_bias,
            has_out_bias=self.mamba_proj_bias,
            step_limits=self.time_step_limit or (0.0, math.inf),
        )

    def make_attention(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        if self.kind(number) == FULL:
            return super().make_attention(ctx, rotaries, number)
        mixer = Mamba2(ctx, self.state_spaces)
        mixer.alias = "mamba"
        return mixer


def read_old_kinds(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with layers of today's kinds, and limits of steps as numbers."""
    kinds = config.get("layer_types") or config.get("layers_block_type")
    named = {"layer_types": [OLD_KINDS.get(kind, kind) for kind in kinds] if kinds else None}
    return {**config, **named, "time_step_limit": step_limits(config.get("time_step_limit"))}


def step_limits(given: Any) -> tuple[float, ...] | None:
    """Return limits of steps, of which one may be infinite, which JSON has no number for."""
    if given is None:
        return None
    values = [v.get("__float__") if isinstance(v, Mapping) else v for v in given]
    return tuple(math.inf if v in (None, "Infinity", "inf") else float(v) for v in values)
