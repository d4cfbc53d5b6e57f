"""What excludes what, in one place: checked at the start and for each request.

Some of what goes together is tested so: tests/e2e/test_pairs.py has adapters, grammars, drafts,
cached prefixes and pages in 8 bits at once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from headstock.errors import ConfigError

SPECULATION = "speculation"
GRAMMAR = "grammar"
MASKS = "masks"
POOLING = "pooling"
STATES = "recurrent state"
WHOLE_PROMPTS = "bidirectional attention"
PREFIX_CACHE = "prefix cache"
ADAPTERS = "adapters"
SESSIONS = "sessions"
TRUNCATION = "truncation of prompts"
UPDATES = "updates of weights"
SLEEP = "sleep"
IMAGES = "images"
COMPLETIONS = "several completions"
RANKS = "several ranks"
WHOLE_STEPS = "whole steps by a plugin"

Effect = Literal[
    "refused at start", "refused for the request", "off for the request", "off for the model"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Two things that do not go together.

    Attributes:
        feature: What gives way.
        other: What it gives way to: a trait of the model, or something that a request asks.
        effect: ``refused at start``: the server does not start with both. ``refused for the
            request``: what asks for both gets an error. ``off for the request``: a request that
            asks for ``other`` is served right, without the feature. ``off for the model``: a model
            that has ``other`` is.
        reason: Why, in one sentence.
    """

    feature: str
    other: str
    effect: Effect
    reason: str


EXCLUSIONS = (
    Exclusion(
        feature=SPECULATION,
        other=STATES,
        effect="refused at start",
        reason="A step writes one state a row, after all of its tokens: wrong drafts would stay in"
        " it.",
    ),
    Exclusion(
        feature=SPECULATION,
        other=POOLING,
        effect="refused at start",
        reason="A model that yields vectors draws no tokens.",
    ),
    Exclusion(
        feature=SPECULATION,
        other=MASKS,
        effect="off for the request",
        reason="A grammar's mask of a drafted position depends on the drafts before it, which the"
        " host does not know in time; allowed ids and bad words are masks, too.",
    ),
    Exclusion(
        feature=PREFIX_CACHE,
        other=WHOLE_PROMPTS,
        effect="off for the model",
        reason="What a token is depends on the tokens after it, so that no prefix can be shared.",
    ),
    Exclusion(
        feature=ADAPTERS,
        other=POOLING,
        effect="refused at start",
        reason="Requests for vectors name no adapter.",
    ),
    Exclusion(
        feature=SESSIONS,
        other=IMAGES,
        effect="refused for the request",
        reason="A session keeps the tokens of its turns, and no images.",
    ),
    Exclusion(
        feature=SESSIONS,
        other=COMPLETIONS,
        effect="refused for the request",
        reason="A turn is one answer, which the next turn comes after.",
    ),
    Exclusion(
        feature=TRUNCATION,
        other=IMAGES,
        effect="refused for the request",
        reason="A prompt that is cut would lose a part of an image.",
    ),
    Exclusion(
        feature=UPDATES,
        other=RANKS,
        effect="refused for the request",
        reason="The model is shared among ranks: each has a part of every weight.",
    ),
    Exclusion(
        feature=UPDATES,
        other=WHOLE_STEPS,
        effect="refused for the request",
        reason="Whole steps are taken over by a plugin, which has packed the weights in its own"
        " way.",
    ),
    Exclusion(
        feature=SLEEP,
        other=WHOLE_STEPS,
        effect="refused for the request",
        reason="Whole steps are taken over by a plugin, which may know where the pages are.",
    ),
)


def off_for(feature: str) -> frozenset[str]:
    """Return what a request may ask that takes ``feature`` from it."""
    return frozenset(
        entry.other
        for entry in EXCLUSIONS
        if entry.feature == feature and entry.effect == "off for the request"
    )


def reason_of(feature: str, other: str) -> str:
    """Return why two things that are named in the table exclude each other."""
    (reason,) = (e.reason for e in EXCLUSIONS if (e.feature, e.other) == (feature, other))
    return reason


def check_start(features: Collection[str], traits: Collection[str], remedy: str) -> None:
    """Refuse to start with features that the model's traits exclude.

    Args:
        features: What is switched on.
        traits: What the model is.
        remedy: What the operator can do.

    Raises:
        ConfigError: Naming the first two that exclude each other.
    """
    for entry in EXCLUSIONS:
        is_met = entry.feature in features and entry.other in traits
        if is_met and entry.effect == "refused at start":
            raise ConfigError(
                f"{entry.feature} is on and the model has {entry.other}, which exclude each other:"
                f" {entry.reason}",
                remedy=remedy,
            )
