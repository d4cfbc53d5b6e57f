"""The cases of every family that has a file: what its real checkpoints use, in small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstock.testing.oracle.case import ModelCase
from tests.models.conftest import FAMILIES
from tests.models.dense_cases import DENSE
from tests.models.expert_cases import EXPERTS
from tests.models.harness import REGISTRY
from tests.models.latent_cases import LATENTS
from tests.models.state_cases import STATES


def _first(name: str) -> ModelCase:
    config, oracle, options = FAMILIES[name]
    model = REGISTRY.load(oracle.__name__)
    given = {"config": config, "oracle": oracle, "options": options}
    return ModelCase(name=name, model=model, variants=MORE.get(name, {}), **given)


MORE: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "llama": {"biases": {"attention_bias": True, "mlp_bias": True}},
    "qwen3": {"window": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}},
}
"""Variants of the families whose options other tests share."""
PLAIN = [*(_first(name) for name in FAMILIES), *DENSE, *EXPERTS, *LATENTS, *STATES]
