"""A Headstock server: whole parts of a program at a time, by ``POST /v1/programs``."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from headstock.errors import RequestError
from headstock.frontend.backends.base import Emit
from headstock.frontend.backends.endpoint import Endpoint
from headstock.programs import Delta, Program, StepDone
from headstock.programs.events import ProgramEnd

_EVENT: msgspec.json.Decoder[Delta | StepDone | ProgramEnd] = msgspec.json.Decoder(
    Delta | StepDone | ProgramEnd
)


class HeadstockServer:
    """Runs programs on a Headstock server.

    Args:
        url: Where it is, with or without ``/v1``.
        api_key: None: it needs none.
        model: Its name; None: the served one.
        timeout_s: For the next event of a program; None: as long as it takes.
        client: Sends the requests; None: one of its own.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:30000",
        api_key: str | None = None,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        base = url.rstrip("/").removesuffix("/v1")
        self._endpoint = Endpoint(base, headers, timeout_s=timeout_s, client=client)
        self._model = model
        self.name = f"Headstock at {base}"

    async def run(self, program: Program, emit: Emit) -> None:
        """Run ``program``; see :class:`headstock.frontend.backends.base.Backend`."""
        body: dict[str, Any] = {"steps": program.steps, "states": program.states, "stream": True}
        if self._model is not None:
            body["model"] = self._model
        is_over = False
        async for data in self._endpoint.events("/v1/programs", body):
            try:
                event = _EVENT.decode(data)
            except msgspec.DecodeError as error:
                raise RequestError(
                    f"The server sent an event that is none of a program: {error}.",
                    remedy="Check that client and server are of one version.",
                    code="bad_answer",
                ) from error
            if isinstance(event, ProgramEnd):
                is_over = True
            else:
                emit(event)
        if not is_over:
            raise RequestError(
                "The server broke off.", remedy="See its log, and try again.", code="broken_off"
            )

    async def flush_cache(self) -> None:
        """Forget cached prefixes that no request uses."""
        await self._endpoint.post("/flush_cache", {})

    async def server_info(self) -> dict[str, Any]:
        """Return what ``/server_info`` says."""
        return await self._endpoint.get("/server_info")

    async def close(self) -> None:
        """Hang up."""
        await self._endpoint.close()
