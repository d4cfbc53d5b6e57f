"""The step provider that takes over a model's forward passes, where somebody offers one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headstock.assemble.compute import LoadedModel, Opened
from headstock.ops.model_step import ModelStepSpec, StepProvider, model_step
from headstock.runner.taken_steps import describe_taken

PROVIDED = {"window": "windows", "state": "states"}
"""Kinds of page groups to the feature of a model that has one."""


@dataclass(frozen=True, slots=True)
class ModelStep:
    """What serves a model's steps.

    Attributes:
        provider: Takes over what it covers; None: the layers compute all.
        text: Who computes what, and why, for the banner; "": nobody offers to take over anything.
    """

    provider: StepProvider | None
    text: str


def choose_model_step(
    opened: Opened, loaded: LoadedModel, config: Mapping[str, Any], *, num_ranks: int
) -> ModelStep:
    """Resolve ``model_step`` for a loaded model, and build the provider.

    Args:
        opened: The backend.
        loaded: The model.
        config: Of the model, in Hugging Face keys.
        num_ranks: Ranks that share it.

    Raises:
        ConfigError: ``--op model_step=NAME`` names nobody who offers it.
        UnsupportedError: It names one who refuses the model.
    """
    resolver = opened.resolver
    if not resolver.is_offered(model_step):
        return ModelStep(None, "")
    spec = _spec(loaded, config, num_ranks)
    build = resolver.resolve(model_step, spec.as_spec())
    resolution = next(r for r in reversed(resolver.resolutions) if r.op == model_step.name)
    if build is model_step.reference:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in resolution.passed_over)
        return ModelStep(None, f"the layers ({reasons or 'as --op says'})")
    provider, options = build(spec, opened.device), loaded.options
    text = describe_taken(
        resolution.provider,
        provider,
        num_rows=options.num_slots,
        step_tokens=options.max_step_tokens,
        num_drafts=options.max_drafts,
    )
    return ModelStep(provider, text)


def _spec(loaded: LoadedModel, config: Mapping[str, Any], num_ranks: int) -> ModelStepSpec:
    kinds = {group.kind for group in loaded.ctx.groups}
    features = {feature for kind, feature in PROVIDED.items() if kind in kinds}
    features |= {"several-ranks"} if num_ranks > 1 else set()
    features |= {"media"} if loaded.model.media is not None else set()
    return ModelStepSpec(
        architecture=loaded.chosen.architecture,
        config=config,
        dtype=loaded.ctx.dtype,
        model=loaded.model,
        layers=loaded.ctx.attention_layers,
        hidden_size=int(config["hidden_size"]),
        num_ranks=num_ranks,
        features=frozenset(features),
    )
