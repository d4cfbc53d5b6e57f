"""The short way to a route, for those that take nothing but the request, and errors before it.

A framework's way to a route is a dozen coroutines deep, each with its stacks of contexts to close,
and all of them stay while the request waits for its turn: more memory than its tokens take.

So there are two ways to a route, and each is needed: routes with parameters in their paths or
queries, and the description of all, are the framework's; requests that wait for an engine come by
the table here. Both meet before the gate in one entrance, ``app.servable``, which is a plain call,
as a coroutine there would wait as long as the request does. The framework's way cannot shrink to
its router alone: its routes need what its own middleware puts into the scope.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headstock.server.http.gate import App, Scope
from headstock.server.http.streaming import Message, Receive, Send

Endpoint = Callable[[Request], Awaitable[Response]]
Answer = Callable[[Request, Exception], Awaitable[Response]]


class Direct:
    """Calls routes whose path is fixed and whose function takes the request alone.

    All else goes to the framework, which these routes are declared to as well: it describes them.

    Args:
        app: The framework's way.
        routes: Returns every route; asked at the first request.
        answers: What answers errors, by their kinds.
        fail: Answers for a defect of ours, which the server then logs.
    """

    def __init__(
        self,
        app: App,
        routes: Callable[[], Iterable[Route]],
        answers: Mapping[type[Exception], Answer],
        fail: Answer,
    ) -> None:
        self._app = app
        self._routes = routes
        self._answers = answers
        self._fail = fail
        self._known: dict[tuple[str, str], tuple[Route, Endpoint]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        found = self._find(scope)
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"], endpoint = found
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except Exception as error:
            answer = _answer_to(error, self._answers)
            if answer is None:
                await (await self._fail(request, error))(scope, receive, send)
                raise
            response = await answer(request, error)
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[Route, Endpoint] | None:
        if scope["type"] != "http":
            return None
        if self._known is None:
            self._known = _direct(self._routes())
        return self._known.get((scope["method"], scope["path"]))


def _direct(routes: Iterable[Route]) -> dict[tuple[str, str], tuple[Route, Endpoint]]:
    """Return the routes that can be called directly, by method and path; the first one is meant."""
    found: dict[tuple[str, str], tuple[Route, Endpoint]] = {}
    taken: list[Route] = []
    for route in routes:
        if route.param_convertors:
            taken.append(route)
        elif _takes_request_alone(route.endpoint):
            for method in route.methods or ():
                is_hidden = any(_is_before(other, method, route.path) for other in taken)
                if not is_hidden:
                    found.setdefault((method, route.path), (route, route.endpoint))
    return found


def _is_before(other: Route, method: str, path: str) -> bool:
    """Whether a route with parameters in its path, declared earlier, has this path too."""
    return method in (other.methods or ()) and other.path_regex.match(path) is not None


def _takes_request_alone(endpoint: Callable[..., Any]) -> bool:
    if not inspect.iscoroutinefunction(endpoint):
        return False
    parameters = inspect.signature(endpoint, eval_str=False).parameters.values()
    return [each.name for each in parameters] == ["request"]


class Answering:
    """Answers errors of the gate and of what stands before it.

    Without it the server below answers in plain text, which no client of ours can read.

    Args:
        app: What is behind.
        answers: What answers errors, by their kinds.
        fail: Answers for a defect of ours, which the server then logs.
    """

    def __init__(self, app: App, answers: Mapping[type[Exception], Answer], fail: Answer) -> None:
        self._app = app
        self._answers = answers
        self._fail = fail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if has_begun:  # half an answer is out, or a whole one: the server closes and logs
                raise
            answer = _answer_to(error, self._answers)
            request = Request(scope, receive, send)
            response = await (answer or self._fail)(request, error)
            await response(scope, receive, send)
            if answer is None:
                raise


def _answer_to(error: Exception, answers: Mapping[type[Exception], Answer]) -> Answer | None:
    """Return what answers ``error``; None: it is a defect of ours."""
    return next((answer for kind, answer in answers.items() if isinstance(error, kind)), None)
