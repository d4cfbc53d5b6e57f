"""The in-tree page for people, as the plugin that it is: by the entry point a stranger uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from headstock.plugins.routes import RouteRegistry

HOOK_API = (2, 2)
hookimpl = pluggy.HookimplMarker("headstock")


@hookimpl
def headstock_register_routes(registry: RouteRegistry) -> None:
    """Name the page; ``--disable-plugin page`` serves without it."""
    registry.add("page", "headstock.server.http.routes_page:make_router")
