"""The page for people, at ``/``: files of this package, and nothing from elsewhere."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.http.context import Serving

FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "turn.js": "text/javascript; charset=utf-8",
    "attachments.js": "text/javascript; charset=utf-8",
    "inspector.js": "text/javascript; charset=utf-8",
    "panel.js": "text/javascript; charset=utf-8",
}
PAGE_PATHS = frozenset({"/", *(f"/page/{name}" for name in FILES if name != "index.html")})
"""They hold no secret and need no key; what they ask for does."""
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def make_router(serving: Serving) -> APIRouter:
    """Return the routes, which need nothing of what is served."""
    del serving
    router = APIRouter(tags=["page"])
    folder = resources.files("headstock.server").joinpath("page")
    bodies = {name: folder.joinpath(name).read_bytes() for name in FILES}

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        """Return the page to chat and to watch the server."""
        return _file("index.html")

    @router.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        """Return a script or the style of the page."""
        if name not in bodies or name == "index.html":
            raise RequestError(
                f"The page has no file {name[:64]!r}.", remedy="Open /.", code="not_found"
            )
        return _file(name)

    def _file(name: str) -> Response:
        return Response(bodies[name], media_type=FILES[name], headers=HEADERS)

    return router
