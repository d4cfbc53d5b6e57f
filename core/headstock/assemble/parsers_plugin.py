"""The in-tree formats, as the plugin that they are: by the entry point a stranger uses.

It lies here and not beside them, since the engine's process reads each plugin and parses nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from headstock.text.parsers.registry import FormatRegistry

HOOK_API = (2, 2)
hookimpl = pluggy.HookimplMarker("headstock")


@hookimpl
def headstock_register_parsers(registry: FormatRegistry) -> None:
    """Add the formats of the model families that are known."""
    from headstock.text.parsers.registry import add_own_formats

    add_own_formats(registry)
