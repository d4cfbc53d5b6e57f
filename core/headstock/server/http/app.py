"""The application: routes, the gate before them, and errors in one envelope."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
)
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from headstock import __version__
from headstock.config.schema import ServeSettings
from headstock.errors import PluginError, RequestError
from headstock.observe.metrics import Metrics
from headstock.server.batch_runner import BatchRunner
from headstock.server.batches import BatchBook
from headstock.server.files import FileBook
from headstock.server.frontdoor import Frontdoor
from headstock.server.http import (
    routes_absent,
    routes_anthropic,
    routes_batches,
    routes_cloud,
    routes_control,
    routes_decisions,
    routes_embeddings,
    routes_files,
    routes_info,
    routes_lora,
    routes_native,
    routes_ollama,
    routes_openai,
    routes_programs,
    routes_ranking,
    routes_requests,
    routes_responses,
    routes_sessions,
    routes_sleep,
    routes_tokenizer,
    routes_upkeep,
    schema,
)
from headstock.server.http.answers import error_answer
from headstock.server.http.context import Serving
from headstock.server.http.cors import Cors
from headstock.server.http.direct import Answer, Answering, Direct
from headstock.server.http.gate import AllowedHosts, App, Gate, Scope
from headstock.server.http.inside import ask_inside
from headstock.server.http.streaming import Receive, Send
from headstock.server.keys import KeyRing, read_keys
from headstock.server.protocols import embeddings, ranking
from headstock.server.protocols.anthropic import CountBody, MessagesBody
from headstock.server.protocols.decisions import DecisionsBody
from headstock.server.protocols.native_bodies import GenerateBody
from headstock.server.protocols.ollama import OllamaChatBody, OllamaGenerateBody
from headstock.server.protocols.openai_answers import ChatAnswer, TextAnswer
from headstock.server.protocols.openai_bodies import ChatBody, CompletionBody
from headstock.server.protocols.parameters import MAX_SHOWN
from headstock.server.protocols.pooling import PoolingBody
from headstock.server.protocols.programs import ProgramAnswer, ProgramBody
from headstock.server.protocols.responses import ResponsesBody
from headstock.server.sessions import Sessions
from headstock.server.store import StateFolder

BODIES = (
    ChatBody,
    CompletionBody,
    MessagesBody,
    ResponsesBody,
    OllamaChatBody,
    OllamaGenerateBody,
    routes_ollama.ShowBody,
    CountBody,
    GenerateBody,
    routes_tokenizer.TokenizeBody,
    routes_tokenizer.DetokenizeBody,
    routes_tokenizer.ParseBody,
    routes_tokenizer.SeparateBody,
    routes_control.AbortBody,
    routes_control.PauseBody,
    routes_control.ContinueBody,
    routes_batches.BatchBody,
    routes_cloud.PredictBody,
    DecisionsBody,
    routes_sessions.OpenSessionBody,
    routes_sessions.CloseSessionBody,
    routes_lora.LoadBody,
    routes_lora.UnloadBody,
    routes_upkeep.UpdateWeightsBody,
    routes_upkeep.WeightVersionBody,
    routes_upkeep.StartProfileBody,
    routes_upkeep.GetWeightBody,
    routes_sleep.MemoryBody,
    ProgramBody,
    embeddings.EmbeddingsBody,
    embeddings.CohereEmbedBody,
    embeddings.OllamaEmbedBody,
    embeddings.OllamaEmbeddingsBody,
    embeddings.EncodeBody,
    PoolingBody,
    ranking.RerankBody,
    ranking.ScoreBody,
    ranking.ClassifyBody,
)
"""What clients may send."""
_ANSWERS = (ChatAnswer, TextAnswer, ProgramAnswer, embeddings.EmbeddingsAnswer)
log = logging.getLogger(__name__)

RouterMaker = Callable[[Serving], APIRouter]
_CODES = {404: "not_found", 405: "method_not_allowed"}


class _App(FastAPI):
    """The framework's application, behind a way in of our own.

    It is called as any application is by who asks from inside, and for the server's life; the
    server calls :meth:`serve` for each request, see :mod:`headstock.server.http.direct`.

    Attributes:
        entrance: Takes every request.
    """

    entrance: App

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's life."""
        await self.serve(scope, receive, send)

    def serve(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Do the same, without a coroutine that waits as long as the request does."""
        if scope["type"] == "http":
            return self.entrance(scope, receive, send)
        return super().__call__(scope, receive, send)


def servable(app: FastAPI) -> ASGIApp:
    """Return what a server calls for each request of an application from here."""
    assert isinstance(app, _App), f"{app!r} is not from create_app"
    return app.serve


def create_app(
    frontdoor: Frontdoor,
    settings: ServeSettings,
    metrics: Metrics,
    *,
    keys: KeyRing | None = None,
    admin_port: int | None = None,
    state: StateFolder | None = None,
    routers: Mapping[str, RouterMaker] | None = None,
) -> FastAPI:
    """Return the application that serves ``frontdoor``.

    Args:
        frontdoor: Running, or about to.
        settings: Of the whole server.
        metrics: What ``/metrics`` shows; the front door's observer.
        keys: Who may enter; None: as the settings say.
        admin_port: Where the routes of control are; None: with the others.
        state: Whose store the front door has; None: it keeps what callers store in memory.
        routers: Make further routes, those of plugins, by name; one that raises, or has a path that
            is taken, is passed over, and logged.

    Raises:
        ConfigError: The API keys cannot be read.
    """
    keys = read_keys(settings.server) if keys is None else keys
    app = _App(
        title="Headstock",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    serving = Serving(frontdoor, settings, metrics, time.time(), frontdoor.store, state)
    _include_routes(app, serving)
    _include_batches(app, serving, keys)
    for name, make in (routers or {}).items():
        try:
            _include(app, make, serving)
        except Exception:  # the boundary to foreign code: without it, all else is served
            log.exception("Router %r of a plugin is passed over:", name)

    answers = _answers_of(app, metrics)
    for kind, answer in answers.items():
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, _fail)
    framework = partial(FastAPI.__call__, app)
    way = Direct(framework, lambda: flat_routes(app.routes), answers, _fail)
    hosts = AllowedHosts(settings.server.host, settings.server.allowed_host)
    app.entrance = Answering(Gate(way, keys, metrics, hosts, admin_port), answers, _fail)
    if settings.server.cors_origin:  # the outermost: a preflight carries no key
        cors = Cors(app.entrance, settings.server.cors_origin)
        app.entrance = Answering(cors, answers, _fail)
    schema.install(app, (*BODIES, *_ANSWERS), frontdoor.card.vocab_size)
    return app


def _answers_of(app: FastAPI, metrics: Metrics) -> dict[type[Exception], Answer]:
    """Return what is answered for each kind of error."""

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError), f"{error!r} is not a RequestError"
        metrics.refused(error.code)
        return error_answer(error, request.url.path)

    return {
        RequestError: refuse,
        RequestValidationError: _refuse_query,
        HTTPException: _Unroutable(app).refuse,
        ClientDisconnect: _gone,
    }


def _include_routes(app: FastAPI, serving: Serving) -> None:
    """Give ``app`` every route."""
    sessions = Sessions(time.monotonic)
    app.include_router(routes_openai.make_router(serving, sessions))
    app.include_router(routes_cloud.make_router(serving))
    app.include_router(routes_decisions.make_router(serving))
    app.include_router(routes_ollama.make_router(serving))
    app.include_router(routes_embeddings.make_router(serving))
    app.include_router(routes_embeddings.make_ollama_router(serving))
    app.include_router(routes_ranking.make_router(serving))
    app.include_router(routes_absent.make_router())
    app.include_router(routes_responses.make_router(serving))
    app.include_router(routes_anthropic.make_router(serving))
    app.include_router(routes_native.make_router(serving, sessions))
    app.include_router(routes_sessions.make_router(serving, sessions))
    app.include_router(routes_tokenizer.make_router(serving))
    app.include_router(routes_tokenizer.make_parsers(serving))
    app.include_router(routes_programs.make_router(serving))
    app.include_router(routes_lora.make_router(serving))
    app.include_router(routes_requests.make_router(serving))
    app.include_router(routes_control.make_probes(serving))
    app.include_router(routes_control.make_router(serving))
    app.include_router(routes_control.make_pauses(serving))
    app.include_router(routes_upkeep.make_router(serving))
    app.include_router(routes_upkeep.make_profiles(serving))
    app.include_router(routes_sleep.make_router(serving))
    app.include_router(routes_info.make_router(serving))


def _include(app: FastAPI, make: RouterMaker, serving: Serving) -> None:
    """Add the routes of a plugin, none of which may stand before or behind another's.

    Raises:
        PluginError: A path is taken.
    """
    router = make(serving)
    routes = flat_routes(app.routes)
    taken = {(route.path, each) for route in routes for each in route.methods or ()}
    for route in flat_routes(router.routes):
        clashing = sorted(each for each in route.methods or () if (route.path, each) in taken)
        if clashing:
            raise PluginError(
                f"A plugin brings a route {clashing[0]} {route.path}, which there is already.",
                remedy="Pass --disable-plugin for one that brings it.",
            )
    app.include_router(router)


def _include_batches(app: FastAPI, serving: Serving, keys: KeyRing) -> None:
    """Give ``app`` the routes of files and batches, and what works these off."""
    files = FileBook(serving.store, serving.settings.server.max_file_bytes)
    batches = BatchBook(serving.store)
    runner = BatchRunner(
        batches, files, partial(ask_inside, app), keys.holder, serving.frontdoor.num_spare
    )
    app.state.batch_runner = runner
    app.include_router(routes_files.make_router(serving, files))
    app.include_router(routes_batches.make_router(serving, batches, files, runner))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Work batches off while the server runs."""
    working = asyncio.create_task(app.state.batch_runner.run())
    try:
        yield
    finally:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


class _Unroutable:
    """Answers what the framework refuses: unknown paths and methods.

    Args:
        app: Whose routes tell which methods a path has.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer ``error`` in the envelope of all errors."""
        assert isinstance(error, HTTPException), f"{error!r} is not an HTTPException"
        code = _CODES.get(error.status_code, "invalid_request")
        problem = {
            "not_found": "There is no such route.",
            "method_not_allowed": f"This route does not take {request.method[:16]}.",
        }.get(code, "The request is malformed.")
        methods = self._methods(request.scope) if code == "method_not_allowed" else []
        remedy = f"Use {' or '.join(methods)}." if methods else "See /openapi.json."
        answer = error_answer(RequestError(problem, remedy=remedy, code=code), request.url.path)
        if methods:
            answer.headers["allow"] = ", ".join(methods)
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
    assert isinstance(error, RequestValidationError), f"{error!r} is not a RequestValidationError"
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
    """Send no answer: the client left while its body was read."""
    return Response(status_code=400)


async def _fail(request: Request, error: Exception) -> Response:
    """Answer for a defect of ours; its trace goes to the log, not to the caller."""
    return error_answer(
        RequestError("The server failed on this request.", remedy="", code="internal_error"),
        request.url.path,
    )
