"""The drafter that the settings ask for, opened for the model at hand."""

from __future__ import annotations

from headstock.assemble.compute import LoadedModel, Opened
from headstock.config.exclusions import POOLING, SPECULATION, STATES, check_start
from headstock.errors import ConfigError, did_you_mean
from headstock.plugins.drafters import DrafterRegistry
from headstock.speculative.provider import Drafter, DrafterSpec, open_drafter

OFF = "none"
MOST_DRAFTS = 15
"""Tokens drafted a request and step, at most: what follows is hardly ever right."""
SWITCH_OFF = "Serve it with --speculation none."


def drafter_place(opened: Opened) -> str | None:
    """Return where the drafter that the settings ask for is; None: nothing is drafted.

    Raises:
        ConfigError: No plugin names it, or it is to draft too much.
    """
    name = opened.settings.speculation.speculation
    if name == OFF:
        return None
    registry = DrafterRegistry()
    opened.chosen.name_drafters(registry)
    place = registry.place(name)
    if place is None:
        known = ", ".join([*registry.names, OFF])
        raise ConfigError(
            f"speculation is {name!r}; there are {known}.{did_you_mean(name, registry.names)}",
            remedy="Choose one of these, or install the plugin that brings it.",
        )
    num_drafts = opened.settings.speculation.num_drafts
    if num_drafts > MOST_DRAFTS:
        raise ConfigError(
            f"num_drafts is {num_drafts}; at most {MOST_DRAFTS} tokens are drafted at once.",
            remedy=f"Set --num-drafts to {MOST_DRAFTS} or less.",
        )
    return place


def serving_drafter(opened: Opened, loaded: LoadedModel, place: str | None) -> Drafter | None:
    """Open the drafter at ``place`` for ``loaded``; None: nothing is drafted.

    Raises:
        ConfigError: The model excludes drafting.
        PluginError: The drafter cannot be imported.
    """
    if place is None:
        return None
    options = loaded.options
    has_states = any(group.kind == "state" for group in loaded.ctx.groups)
    traits = {STATES: has_states, POOLING: "draw" not in options.yields}
    check_start({SPECULATION}, [name for name, is_so in traits.items() if is_so], SWITCH_OFF)
    spec = DrafterSpec(
        num_drafts=options.max_drafts,
        num_slots=options.num_slots,
        max_length=options.max_length,
        vocab_size=options.vocab_size,
    )
    return open_drafter(place, spec, opened.resolver)
