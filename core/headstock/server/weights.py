"""The weights that the engine has, and the loading of others while the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from headstock.errors import RequestError
from headstock.server.errors import BusyError
from headstock.wire.messages import LoadWeights, ToEngine, UpkeepReply

log = logging.getLogger(__name__)
FIRST_VERSION = "default"
FIELD = "model_path"


class WeightsBook:
    """Knows which weights are served, has others loaded, and tells a new engine of them.

    Args:
        path: Of the weights that the server began with.
        send: Sends to the engine.
        on_change: Called with the version of the weights once they are loaded.
    """

    def __init__(
        self, path: str, send: Callable[[ToEngine], None], on_change: Callable[[str], None]
    ) -> None:
        self._first_path = self.path = path
        self.version = FIRST_VERSION
        self._send, self._on_change = send, on_change
        self._call = 0  # below 0 ever after: other questions to the engine count upwards
        self._answer: asyncio.Future[UpkeepReply] | None = None

    async def load(
        self, path: str, version: str | None, timeout_s: float, *, is_aborting: bool
    ) -> UpkeepReply:
        """Put the weights of another checkpoint in the places of the model's.

        Args:
            path: Its folder or file, on the server.
            version: What to call them; None: as those before.
            timeout_s: How long the engine may take.
            is_aborting: Whether all requests end first; those that run are computed anew if not.

        Raises:
            RequestError: Others are being loaded, or these are of another model.
            BusyError: The engine did not answer, or died of them: it starts with those before.
        """
        if self._answer is not None:
            raise RequestError(
                "Other weights are being loaded.",
                remedy="Wait until they are.",
                code="weights_refused",
            )
        self._call -= 1
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._send(LoadWeights(call=self._call, path=path, is_aborting=is_aborting))
        try:
            reply = await asyncio.wait_for(asyncio.shield(answer), timeout_s)
        except TimeoutError as error:
            # The engine may still load them: until it answers, which weights it has is unknown.
            answer.add_done_callback(lambda done: self._settle(done.result(), path, version))
            raise BusyError(
                f"The weights are not loaded after {timeout_s:g} s; loading continues.",
                code="engine_unavailable",
                retry_after_s=timeout_s,
            ) from error
        self._settle(reply, path, version)
        if reply.problem:
            raise RequestError(
                reply.problem, remedy=reply.remedy, field=FIELD, code="weights_refused"
            )
        return reply

    def rename(self, version: str) -> None:
        """Call the weights something else."""
        self.version = version
        self._on_change(version)

    def answer(self, reply: UpkeepReply) -> None:
        """Take an answer of the engine's."""
        if self._answer is not None and reply.call == self._call and not self._answer.done():
            self._answer.set_result(reply)
        elif reply.call == 0 and reply.problem:
            log.error("The weights of %s are lost: %s", self.path, reply.problem)
            self.path = self._first_path
            self.rename(FIRST_VERSION)

    def started(self) -> None:
        """Have a new engine load the weights that the one before had, before its requests go on."""
        if self._answer is not None and not self._answer.done():
            lost = UpkeepReply(
                call=self._call,
                problem="The engine died while it loaded the weights; it has those before.",
                remedy="See the server's log.",
            )
            self._answer.set_result(lost)
        if self.path != self._first_path:
            self._send(LoadWeights(call=0, path=self.path))

    def _settle(self, reply: UpkeepReply, path: str, version: str | None) -> None:
        self._answer = None
        if not reply.problem:
            self.path = path
            self.rename(self.version if version is None else version)
