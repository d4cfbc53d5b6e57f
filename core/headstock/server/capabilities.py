"""What this server can do, and what excludes what: for ``GET /capabilities``."""

from __future__ import annotations

from typing import Any

from headstock.config import EngineSettings
from headstock.config.exclusions import (
    ADAPTERS,
    EXCLUSIONS,
    GRAMMAR,
    IMAGES,
    POOLING,
    PREFIX_CACHE,
    RANKS,
    SPECULATION,
)
from headstock.wire.steps import RunnerLimits


def capabilities(settings: EngineSettings, limits: RunnerLimits | None) -> dict[str, Any]:
    """Return what is switched on, and all that excludes something, as far as it is known.

    Args:
        settings: What the operator has set.
        limits: What the engine has started with; None: it has not.
    """
    return {
        "is_known": limits is not None,
        "features": {} if limits is None else _features(settings, limits),
        "exclusions": [
            {
                "feature": entry.feature,
                "excluded_by": entry.other,
                "effect": entry.effect,
                "reason": entry.reason,
            }
            for entry in EXCLUSIONS
        ],
    }


def _features(settings: EngineSettings, limits: RunnerLimits) -> dict[str, Any]:
    """Return each feature, with what is to be known of it where it is on, else None."""
    speculation, wanted = settings.speculation, settings.model
    has_grammars = settings.grammar.grammar_backend != "none" and not wanted.skip_tokenizer_init
    drafter = {"drafter": speculation.speculation, "num_drafts": limits.max_drafts}
    num_ranks = settings.parallel.tp_size
    is_sharing = settings.cache.prefix_cache and limits.is_causal
    features: dict[str, dict[str, Any] | None] = {
        "generation": {"max_length": limits.max_length} if "draw" in limits.yields else None,
        POOLING: None if "draw" in limits.yields else {},
        IMAGES: {"max_tokens": limits.media.max_tokens} if limits.media is not None else None,
        ADAPTERS: {"at_once": limits.num_adapters} if limits.num_adapters else None,
        GRAMMAR: {} if has_grammars else None,
        PREFIX_CACHE: {} if is_sharing else None,
        SPECULATION: drafter if limits.max_drafts else None,
        RANKS: {"count": num_ranks} if num_ranks > 1 else None,
    }
    return features
