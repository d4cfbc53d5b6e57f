"""A server that sleeps: its model stays loaded, and the memory of its pages is given back."""

from __future__ import annotations

from collections.abc import Callable

from headstock.errors import RequestError
from headstock.server.engine_calls import EngineCalls
from headstock.server.errors import BusyError
from headstock.wire.messages import Sleep, ToEngine

ASLEEP = "The server sleeps: its pages are given back."


class Sleeping:
    """Puts the engine to sleep, wakes it, and tells a new engine that it is to sleep.

    Args:
        calls: Questions to the engine.
        send: Sends to it.
        notify: Called when requests are served again.

    Attributes:
        is_asleep: Whether the engine was put to sleep, and not woken since.
    """

    def __init__(
        self, calls: EngineCalls, send: Callable[[ToEngine], None], notify: Callable[[], None]
    ) -> None:
        self._calls, self._send, self._notify = calls, send, notify
        self.is_asleep = False

    async def sleep(self, timeout_s: float) -> int:
        """Have the memory of the pages given back; returns the bytes, 0 if that was done before.

        Requests are refused from now on, and those that run wait, until :meth:`wake`.

        Raises:
            RequestError: The engine cannot.
            BusyError: It did not answer; it counts as asleep, since it may sleep later.
        """
        was_asleep, self.is_asleep = self.is_asleep, True
        try:
            reply = await self._calls.sleep(timeout_s)
        except BusyError:
            raise
        except RequestError:
            self.is_asleep = was_asleep
            raise
        return reply.count

    async def wake(self, timeout_s: float) -> None:
        """Have the pages made again, and go on; one that does not sleep stays awake.

        Raises:
            RequestError: There is no room for them now; it sleeps on.
            BusyError: The engine did not answer.
        """
        await self._calls.wake(timeout_s)
        self.is_asleep = False
        self._notify()

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
