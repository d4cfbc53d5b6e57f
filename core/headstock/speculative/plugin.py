"""The in-tree drafter, as the plugin that it is: by the entry point a stranger uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from headstock.plugins.drafters import DrafterRegistry

HOOK_API = (2, 0)
hookimpl = pluggy.HookimplMarker("headstock")


@hookimpl
def headstock_register_drafters(registry: DrafterRegistry) -> None:
    """Name the n-gram drafter; it is imported when it is asked for."""
    registry.add("ngram", "headstock.speculative.ngram:open_ngram")
