"""The way in: what is raised before a route is reached is answered in the envelope of errors."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request

from headstock.server.http.direct import Answer
from headstock.server.http.gate import App, Scope
from headstock.server.http.streaming import Message, Receive, Send


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
            known = (answer for kind, answer in self._answers.items() if isinstance(error, kind))
            answer = next(known, None)
            request = Request(scope, receive, send)
            response = await (answer or self._fail)(request, error)
            await response(scope, receive, send)
            if answer is None:
                raise
