"""The application: routes, the gate before them, and errors in one envelope."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from headstock import __version__
from headstock.config.schema import ServeSettings
from headstock.errors import RequestError
from headstock.observe.metrics import Metrics
from headstock.server.frontdoor import Frontdoor
from headstock.server.http import routes_control, routes_native, routes_openai, schema
from headstock.server.http.answers import error_answer
from headstock.server.http.context import Serving
from headstock.server.http.cors import Cors
from headstock.server.http.gate import Gate
from headstock.server.http.hosts import AllowedHosts
from headstock.server.keys import KeyRing, read_keys
from headstock.server.protocols.native import GenerateBody
from headstock.server.protocols.openai_answers import ChatAnswer, TextAnswer
from headstock.server.protocols.openai_bodies import ChatBody, CompletionBody
from headstock.server.protocols.parameters import MAX_SHOWN

BODIES = (
    ChatBody,
    CompletionBody,
    GenerateBody,
    routes_native.TokenizeBody,
    routes_native.DetokenizeBody,
    routes_control.AbortBody,
)
"""What clients may send."""
_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(
    frontdoor: Frontdoor,
    settings: ServeSettings,
    metrics: Metrics,
    *,
    keys: KeyRing | None = None,
    admin_port: int | None = None,
) -> FastAPI:
    """Return the application that serves ``frontdoor``.

    Args:
        frontdoor: Running, or about to.
        settings: Of the whole server.
        metrics: What ``/metrics`` shows; the front door's observer.
        keys: Who may enter; None: as the settings say.
        admin_port: Where the routes of control are; None: with the others.

    Raises:
        ConfigError: The API keys cannot be read.
    """
    app = FastAPI(title="Headstock", version=__version__, docs_url=None, redoc_url=None)
    serving = Serving(frontdoor, settings, metrics, time.time())
    app.include_router(routes_openai.make_router(serving))
    app.include_router(routes_native.make_router(serving))
    app.include_router(routes_control.make_probes(serving))
    app.include_router(routes_control.make_router(serving))

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError), f"{error!r} is no RequestError"
        metrics.refused(error.code)
        return error_answer(error)

    app.add_exception_handler(RequestError, refuse)
    app.add_exception_handler(RequestValidationError, _refuse_query)
    app.add_exception_handler(HTTPException, _Unroutable(app).refuse)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _fail)
    app.add_middleware(
        Gate,
        keys=read_keys(settings.server) if keys is None else keys,
        metrics=metrics,
        hosts=AllowedHosts(settings.server.host, settings.server.allowed_host),
        admin_port=admin_port,
    )
    if settings.server.cors_origin:  # the outermost: a preflight carries no key
        app.add_middleware(Cors, origins=settings.server.cors_origin)
    schema.install(app, (*BODIES, ChatAnswer, TextAnswer), frontdoor.card.vocab_size)
    return app


class _Unroutable:
    """Answers what the framework refuses: unknown paths and methods.

    Args:
        app: Whose routes tell which methods a path has.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer ``error`` in the envelope of all errors."""
        assert isinstance(error, HTTPException), f"{error!r} is no HTTPException"
        code = _CODES.get(error.status_code, "invalid_request")
        problem = {
            "not_found": "There is no such route.",
            "method_not_allowed": f"This route does not take {request.method[:16]}.",
        }.get(code, "The request is malformed.")
        answer = error_answer(RequestError(problem, remedy="See /openapi.json.", code=code))
        if code == "method_not_allowed":
            answer.headers["allow"] = ", ".join(self._methods(request.scope))
        return answer

    def _methods(self, scope: MutableMapping[str, Any]) -> list[str]:
        """Return the methods of a path, whichever routes they are spread over."""
        path = scope["path"]
        methods = {
            method
            for route in flat_routes(self._app.routes)
            if route.path_regex.match(path)
            for method in route.methods or ()
        }
        return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def flat_routes(routes: Iterable[Any]) -> Iterator[Route]:
    """Yield routes, those of included routers too, which newer versions of FastAPI keep apart."""
    for route in routes:
        if isinstance(route, Route):
            yield route
        elif hasattr(route, "original_router"):
            yield from flat_routes(route.original_router.routes)


async def _refuse_query(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses of a path or a query."""
    assert isinstance(error, RequestValidationError), f"{error!r} is no RequestValidationError"
    first = error.errors()[0]
    field = str(first["loc"][-1])
    shown = repr(first.get("input"))[:MAX_SHOWN]
    return error_answer(
        RequestError(
            f"{field} is {shown}: {str(first['msg'])[:1].lower()}{str(first['msg'])[1:]}.",
            remedy="See /openapi.json for the types and limits.",
            field=field,
            code="invalid_type",
        )
    )


async def _gone(request: Request, error: Exception) -> Response:
    """Answer nobody: the client left while its body was read."""
    return Response(status_code=400)


async def _fail(request: Request, error: Exception) -> Response:
    """Answer for a defect of ours; its trace goes to the log, not to the caller."""
    return error_answer(
        RequestError("The server failed on this request.", remedy="", code="internal_error")
    )
