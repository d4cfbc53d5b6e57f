"""A server that sleeps: the memory of its pages is given back, or all that its engine has.

The pages can go while the model stays loaded. The weights go with the engine's whole process, which
works on every device, and leaves nothing behind there; another process reads them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from headstock.errors import RequestError
from headstock.server.engine_calls import ASLEEP, EngineCalls
from headstock.server.errors import BusyError
from headstock.wire.messages import Rested, Sleep, ToEngine


class EngineProcess(Protocol):
    """The engine's process; :class:`headstock.server.supervisor.Supervisor` is one."""

    def rest(self) -> None:
        """End it, and start no other until :meth:`rouse`; ``Rested`` says that it is gone."""
        ...

    def rouse(self) -> None:
        """Start another; ``Started`` follows, or ``Rested`` with why it did not start."""
        ...


class Sleeping:
    """Puts the engine to sleep, wakes it, and tells a new engine that it is to sleep.

    Args:
        calls: Questions to the engine.
        send: Sends to it.
        notify: Called when requests are served again.
        process: The engine's; None: it is this process, and cannot be ended.

    Attributes:
        is_asleep: Whether the engine was put to sleep, and not woken since.
        is_resting: Whether its process was ended, and no other was started since.
    """

    def __init__(
        self,
        calls: EngineCalls,
        send: Callable[[ToEngine], None],
        notify: Callable[[], None],
        process: EngineProcess | None = None,
    ) -> None:
        self._calls, self._send, self._notify = calls, send, notify
        self._process = process
        self._waiting: list[asyncio.Future[Rested | None]] = []
        self.is_asleep = self.is_resting = False

    async def sleep(self, timeout_s: float) -> int:
        """Have the memory of the pages given back; returns the bytes, 0 if that was done before.

        Requests are refused from now on, and those that run wait, until :meth:`wake`.

        Raises:
            RequestError: The engine cannot.
            BusyError: It did not answer; it counts as asleep, since it may sleep later.
        """
        if self.is_resting:
            return 0
        was_asleep, self.is_asleep = self.is_asleep, True
        try:
            reply = await self._calls.sleep(timeout_s)
        except BusyError:
            raise
        except RequestError:
            self.is_asleep = was_asleep
            raise
        return reply.count

    async def rest(self, timeout_s: float) -> None:
        """Have the engine's process ended: the memory of weights and pages is given back.

        Requests are refused from now on; those that run wait, and are sent to the next process.

        Raises:
            RequestError: The engine has no process of its own.
            BusyError: It did not end, or was woken before; it counts as asleep.
        """
        if self._process is None:
            raise RequestError(
                "The engine is part of this process, which keeps the weights.",
                remedy="Send tags with kv_cache alone.",
                field="tags",
                code="sleep_refused",
            )
        if self.is_resting:
            return
        self.is_asleep = self.is_resting = True
        self._process.rest()
        if await self._heard(timeout_s) is None:
            raise BusyError(
                "The engine was woken before it slept.",
                code="engine_unavailable",
                retry_after_s=2.0,
            )

    async def wake(self, timeout_s: float) -> None:
        """Have weights and pages made again, and go on; one that does not sleep stays awake.

        Raises:
            RequestError: There is no room for them now; it sleeps on.
            BusyError: The engine did not answer.
        """
        if self.is_resting:
            self.is_asleep = False  # or the new engine would be sent to sleep
            await self._rouse(timeout_s)
        else:
            await self._calls.wake(timeout_s)
            self.is_asleep = False
        self._notify()

    async def wake_weights(self, timeout_s: float) -> None:
        """Have the weights loaded again, and sleep on without pages.

        Raises:
            RequestError: The engine does not start; it sleeps on.
            BusyError: It did not start in time.
        """
        if self.is_resting:
            await self._rouse(timeout_s)

    def check_awake(self) -> None:
        """Refuse what cannot be done to an engine that sleeps.

        Raises:
            RequestError: It sleeps.
        """
        if self.is_asleep:
            raise RequestError(ASLEEP, remedy="Wake it with POST /wake_up first.", code="asleep")

    def started(self) -> None:
        """Have a new engine sleep if the one before did."""
        if self.is_asleep:
            self._send(Sleep(call=0))
        self._tell(None)

    def rested(self, message: Rested) -> None:
        """Take note that there is no engine; the server sleeps, whatever it was to do."""
        if message.problem:
            self.is_asleep = self.is_resting = True
        self._tell(message)

    async def _rouse(self, timeout_s: float) -> None:
        assert self._process is not None, "an engine without a process was ended"
        self.is_resting = False
        self._process.rouse()
        heard = await self._heard(timeout_s)
        if heard is not None and not heard.problem:  # it was woken while it fell asleep
            heard = await self._heard(timeout_s)
        if heard is not None:
            raise RequestError(heard.problem, remedy=heard.remedy, code="wake_refused")

    async def _heard(self, timeout_s: float) -> Rested | None:
        """Wait for a word on the engine's process; None: it has started.

        Raises:
            BusyError: There was none in time.
        """
        waiting: asyncio.Future[Rested | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            return await asyncio.wait_for(waiting, timeout_s)
        except TimeoutError as error:
            raise BusyError(
                f"The engine did not answer in {timeout_s:g} s.",
                code="engine_unavailable",
                retry_after_s=2.0,
            ) from error
        finally:
            self._waiting.remove(waiting)

    def _tell(self, heard: Rested | None) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(heard)
