"""Solar Open: GLM-4.5 whose layers all have experts, with whole heads rotated.

Source: Upstage 2025, "Solar Open"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from typing import ClassVar

from headstock_models.glm4_moe import Glm4MoeConfig, Glm4MoeForCausalLM


class SolarOpenConfig(Glm4MoeConfig, frozen=True, kw_only=True):
    intermediate_size: int = 0
    head_dim: int | None = 128
    moe_intermediate_size: int = 1280
    first_k_dense_replace: int = 0
    rotary_share: ClassVar[float] = 1.0
    rope_theta_default: ClassVar[float] = 1_000_000.0


class SolarOpenForCausalLM(Glm4MoeForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = SolarOpenConfig
    accepted: ClassVar = {
        **Glm4MoeForCausalLM.accepted,
        "use_qk_norm": (False,),
        "first_k_dense_replace": (0,),
        "partial_rotary_factor": (1,),
    }
