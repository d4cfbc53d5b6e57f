"""What plugins bring to the API process: architectures, formats of thoughts and calls, routers."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headstock.errors import PluginError
from headstock.plugins.loader import REFERENCE, discover
from headstock.plugins.models import ModelRegistry
from headstock.plugins.places import ask_each
from headstock.plugins.routes import RouteRegistry
from headstock.text.parsers.registry import FormatRegistry

if TYPE_CHECKING:
    from headstock.server.http.app import RouterMaker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ApiPlugins:
    """What they bring.

    Attributes:
        models: Architectures.
        formats: How models write thoughts and calls.
        routes: Further routes.
    """

    models: ModelRegistry
    formats: FormatRegistry
    routes: RouteRegistry

    def load_routers(self) -> dict[str, RouterMaker]:
        """Return what makes further routes, by name; what does not import is logged."""
        routers: dict[str, RouterMaker] = {}
        for name in self.routes.names:
            try:
                routers[name] = self.routes.load(name)
            except PluginError as error:
                log.warning("%s It is passed over.", error)
        return routers


def load_api_plugins(disabled: Collection[str]) -> ApiPlugins:
    """Ask all plugins but the disabled; what raises or does not import is left out, and logged."""
    plugins = discover(backend=REFERENCE, disabled=disabled)
    formats, routes = FormatRegistry(), RouteRegistry()
    failures = ask_each(plugins, "headstock_register_parsers", formats)
    failures += ask_each(plugins, "headstock_register_routes", routes)
    for failure in failures:
        log.warning("The %s", failure)
    return ApiPlugins(ModelRegistry.of_plugins(plugins), formats, routes)
