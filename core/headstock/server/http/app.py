"""The application: routes, the gate before them, and errors in one envelope."""

from __future__ import annotations

import time

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from headstock import __version__
from headstock.config.schema import ServeSettings
from headstock.errors import RequestError
from headstock.observe.metrics import Metrics
from headstock.server.frontdoor import Frontdoor
from headstock.server.http import (
    routes_control,
    routes_native,
    routes_openai,
    routes_page,
    routes_programs,
    schema,
)
from headstock.server.http.answers import error_answer
from headstock.server.http.context import Serving
from headstock.server.http.gate import Gate
from headstock.server.keys import KeyRing, read_keys
from headstock.server.protocols.native import GenerateBody
from headstock.server.protocols.openai_answers import ChatAnswer, TextAnswer
from headstock.server.protocols.openai_bodies import ChatBody, CompletionBody
from headstock.server.protocols.programs import ProgramAnswer, ProgramBody

_STRUCTS = (
    ChatBody,
    CompletionBody,
    GenerateBody,
    routes_native.TokenizeBody,
    routes_native.DetokenizeBody,
    routes_control.AbortBody,
    ChatAnswer,
    TextAnswer,
    ProgramBody,
    ProgramAnswer,
)
_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(
    frontdoor: Frontdoor,
    settings: ServeSettings,
    metrics: Metrics,
    *,
    keys: KeyRing | None = None,
) -> FastAPI:
    """Return the application that serves ``frontdoor``.

    Args:
        frontdoor: Running, or about to.
        settings: Of the whole server.
        metrics: What ``/metrics`` shows; the front door's observer.
        keys: Who may enter; None: as the settings say.

    Raises:
        ConfigError: The API keys cannot be read.
    """
    app = FastAPI(title="Headstock", version=__version__, docs_url=None, redoc_url=None)
    serving = Serving(frontdoor, settings, metrics, time.time())
    app.include_router(routes_openai.make_router(serving))
    app.include_router(routes_native.make_router(serving))
    app.include_router(routes_programs.make_router(serving))
    app.include_router(routes_page.make_router())
    app.include_router(routes_control.make_probes(serving))
    app.include_router(routes_control.make_router(serving))

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError), f"{error!r} is no RequestError"
        metrics.refused(error.code)
        return error_answer(error)

    app.add_exception_handler(RequestError, refuse)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _fail)
    app.add_middleware(
        Gate, keys=read_keys(settings.server) if keys is None else keys, metrics=metrics
    )
    schema.install(app, _STRUCTS)
    return app


async def _refuse_http(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException), f"{error!r} is no HTTPException"
    code = _CODES.get(error.status_code, "invalid_request")
    problem = {
        "not_found": "There is no such route.",
        "method_not_allowed": f"This route does not take {request.method[:16]}.",
    }.get(code, "The request is malformed.")
    return error_answer(RequestError(problem, remedy="See /openapi.json.", code=code))


async def _gone(request: Request, error: Exception) -> Response:
    """Answer nobody: the client left while its body was read."""
    return Response(status_code=400)


async def _fail(request: Request, error: Exception) -> Response:
    """Answer for a defect of ours; its trace goes to the log, not to the caller."""
    return error_answer(
        RequestError("The server failed on this request.", remedy="", code="internal_error")
    )
