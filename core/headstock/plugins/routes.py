"""Where routers are: named by plugins, built by the API process when it begins to serve."""

from __future__ import annotations

from headstock.plugins.places import Places


class RouteRegistry(Places):
    """The routers that plugins named.

    The function at a place takes what routes need, a ``headstock.server.http.context.Serving``,
    and returns a FastAPI ``APIRouter``. The gate is before its routes as before all others: keys,
    limits and names of hosts hold. A router that raises, or has a path that another router has, is
    passed over with all its routes, and logged.
    """

    __slots__ = ()
    kind = "router"
