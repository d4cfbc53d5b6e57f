"""The in-tree grammar provider, as the plugin that it is: by the entry point a stranger uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from headstock.structured.provider import GrammarRegistry

HOOK_API = (2, 0)
hookimpl = pluggy.HookimplMarker("headstock")


@hookimpl
def headstock_register_grammars(registry: GrammarRegistry) -> None:
    """Name llguidance; it is imported when the first grammar comes."""
    registry.add("llguidance", "headstock.structured.guidance:open_llguidance")
