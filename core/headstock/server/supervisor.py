"""Keeps an engine process alive: starts it, watches it, starts it again.

To the front door a supervisor is a link like any other. When the process dies, the link says
:class:`Crashed`; when it ended on request, :class:`Rested`; when another one is up,
:class:`Started`. A new process gets a new socket, so that words of a dead one never reach a live
request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from headstock.server.descriptors import SCARCE, require
from headstock.wire.messages import Crashed, FromEngine, Loading, Rested, Started, ToEngine
from headstock.wire.transport import Endpoint, ZmqLink

log = logging.getLogger(__name__)

HANG_LIMIT_S = 120.0
"""An engine that is up and says nothing for so long is killed. Seconds."""
WEDGE_LIMIT_S = 15.0
"""An engine that speaks, but has not taken in what was sent so long ago, is killed. Seconds."""
RESTART_SPAN_S = 600.0
"""Restarts are counted over this span. Seconds."""
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 30.0
_LAST_WORDS_S = 0.1
_EXIT_GRACE_S = 5.0
_LOOK_EVERY_S = 1.0
_LINK_DESCRIPTORS = 24
"""What a link and a process's start take together, with some to spare."""
_SILENCE_S = 5.0
"""An engine heard of within this time speaks: it does so once a second. Seconds."""


class Supervisor:
    """An ``EngineLink`` to an engine process that is started again when it dies.

    Args:
        command: From the address to connect to, the engine's command line.
        restart_limit: Restarts within ten minutes before it gives up.
        on_progress: Called with what a starting engine reports.
        hang_limit_s: Silence after which a running engine is killed. Seconds.
        wedge_limit_s: How long a message may wait to be taken in by an engine that speaks. Seconds.
    """

    def __init__(
        self,
        command: Callable[[str], Sequence[str]],
        *,
        restart_limit: int,
        on_progress: Callable[[Loading], None] | None = None,
        hang_limit_s: float = HANG_LIMIT_S,
        wedge_limit_s: float = WEDGE_LIMIT_S,
    ) -> None:
        self._command = command
        self._restart_limit = restart_limit
        self._on_progress = on_progress
        self._hang_limit_s = hang_limit_s
        self._wedge_limit_s = wedge_limit_s
        self._inbox: asyncio.Queue[list[FromEngine]] = asyncio.Queue()
        self._link: ZmqLink | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._roused = asyncio.Event()
        self._roused.set()
        self._rest_s: float | None = None
        self._is_waking = False
        self._is_up = False
        self._was_ever_up = False
        self._heard_s = 0.0
        self._last_words: Crashed | None = None
        self._spoke = asyncio.Event()
        self._restarts: deque[float] = deque()
        self._num_scarce = 0
        self.gave_up: Crashed | None = None
        """Why there will be no engine any more."""
        self.ended = asyncio.Event()
        """Set when it gave up or was stopped."""

    @property
    def pid(self) -> int | None:
        """The engine's process id, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def unheard_s(self) -> float:
        """How long the oldest message has waited that the engine has not taken in. Seconds."""
        return 0.0 if self._link is None else self._link.unheard_s

    def start(self) -> None:
        """Start the engine; what becomes of it is heard from :meth:`receive`."""
        assert self._task is None, "started twice"
        self._task = asyncio.create_task(self._supervise())

    def send(self, message: ToEngine) -> None:
        """Send to the engine; what is sent while there is none is lost, as its requests are."""
        if self._link is not None:
            self._link.send(message)

    async def receive(self) -> list[FromEngine]:
        """Wait for messages; an empty list: there will be no more."""
        return await self._inbox.get()

    def close(self) -> None:
        """End the engine without waiting."""
        self._stopping.set()
        self._kill(signal.SIGKILL)

    async def give_up(self, problem: str, remedy: str) -> None:
        """End the engine for good: the operator must change something first."""
        self.gave_up = Crashed(problem=problem, remedy=remedy, is_config=True)
        await self.stop()

    async def stop(self) -> None:
        """End the engine: asked first, killed if it lingers."""
        self._stopping.set()
        self._kill(signal.SIGTERM)
        if self._task is None:
            self._finish()
            return
        _, unfinished = await asyncio.wait([self._task], timeout=_EXIT_GRACE_S)
        if unfinished:
            self._kill(signal.SIGKILL)
            await asyncio.wait([self._task])

    def rest(self) -> None:
        """End the engine, and start no other until :meth:`rouse`."""
        self._roused.clear()
        self._rest_s = asyncio.get_running_loop().time()
        self._kill(signal.SIGTERM)

    def rouse(self) -> None:
        """Start an engine after :meth:`rest`; should it not start, the link says why, and rests."""
        self._is_waking = True
        self._roused.set()

    async def _supervise(self) -> None:
        try:
            while True:
                if await self._wait_to_be_roused():
                    return
                try:
                    crashed = await self._run_once()
                except _ScarceError as error:
                    if await self._wait_for_more(error):
                        return
                    continue
                if self._stopping.is_set():
                    return
                if isinstance(crashed, Rested):
                    self._inbox.put_nowait([crashed])
                    continue
                if crashed.is_config:
                    self.gave_up = crashed
                self._inbox.put_nowait([crashed])
                if self.gave_up is not None:
                    log.error("%s", crashed.problem)
                    return
                backoff_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (len(self._restarts) - 1))
                log.error("%s Starting it again in %.1f s.", crashed.problem, backoff_s)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), backoff_s)
                    return
        finally:
            self._finish()

    async def _wait_to_be_roused(self) -> bool:
        """Wait as long as it is to rest; tell whether it was stopped."""
        waiting = [asyncio.create_task(each.wait()) for each in (self._roused, self._stopping)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        return self._stopping.is_set()

    async def _wait_for_more(self, error: _ScarceError) -> bool:
        """Wait before the next try; tell whether it was stopped meanwhile."""
        self._num_scarce += 1
        if self._num_scarce == 1:  # callers that wait for the engine are notified once
            self._inbox.put_nowait([_scarce(error)])
        backoff_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._num_scarce - 1, 10))
        log.error("%s Trying again in %.1f s.", _scarce(error).problem, backoff_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), backoff_s)
        return self._stopping.is_set()

    def _finish(self) -> None:
        self._inbox.put_nowait([])
        self.ended.set()

    async def _run_once(self) -> Crashed | Rested:
        """Run one engine process to its end, and return what to tell of it.

        Raises:
            _ScarceError: The system had no more descriptors, processes or memory for it.
        """
        self._is_up, self._last_words, self._rest_s = False, None, None
        self._spoke.clear()
        link = _open_link()
        pump = asyncio.create_task(self._pump(link))
        try:
            command = self._command(link.address)
            process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        except OSError as error:
            pump.cancel()
            link.close()
            if error.errno in SCARCE:
                raise _ScarceError(error) from error
            return Crashed(
                problem=f"The engine process does not start: {error}.",
                remedy="Check the installation.",
                is_config=True,
            )
        self._num_scarce = 0
        self._process, self._link = process, link
        if self._stopping.is_set() or self._rest_s is not None:
            self._kill(signal.SIGKILL)
        try:
            reason = await self._watch(process)
        finally:
            self._process = self._link = None
            self._end_group(process)
            pump.cancel()
            link.close()
        return self._judge(reason)

    async def _watch(self, process: asyncio.subprocess.Process) -> str:
        """Wait until the process is gone, or is of no use any more; return why in words."""
        exited = asyncio.create_task(process.wait())
        spoke = asyncio.create_task(self._spoke.wait())
        try:
            while True:
                done, _ = await asyncio.wait(
                    [exited, spoke], timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED
                )
                if exited in done:
                    await asyncio.sleep(_LAST_WORDS_S)  # for words still on their way
                    return _how(exited.result())
                if spoke in done:
                    return "it said so"
                if self._is_lingering():
                    return f"it did not end in {_EXIT_GRACE_S:.0f} s"
                if self._is_hung():
                    return f"it said nothing for {self._hang_limit_s:.0f} s"
                if self._is_wedged():
                    return f"nothing that was sent reached it for {self._wedge_limit_s:.0f} s"
        finally:
            exited.cancel()
            spoke.cancel()

    def _is_lingering(self) -> bool:
        """Whether it was asked to end, and had enough time for it."""
        now_s = asyncio.get_running_loop().time()
        return self._rest_s is not None and now_s > self._rest_s + _EXIT_GRACE_S

    def _is_hung(self) -> bool:
        silence_s = asyncio.get_running_loop().time() - self._heard_s
        return self._is_up and silence_s > self._hang_limit_s

    def _is_wedged(self) -> bool:
        """Whether it speaks, and does not hear: its silence is judged by :meth:`_is_hung`."""
        silence_s = asyncio.get_running_loop().time() - self._heard_s
        return self._is_up and silence_s < _SILENCE_S and self.unheard_s > self._wedge_limit_s

    async def _pump(self, link: ZmqLink) -> None:
        """Pass on what the engine sends; the error of a crash is kept for :meth:`_judge`."""
        clock = asyncio.get_running_loop().time
        while messages := await link.receive():
            self._heard_s = clock()
            passed: list[FromEngine] = []
            for message in messages:
                if isinstance(message, Crashed):
                    self._last_words = message
                    self._spoke.set()
                    continue
                if isinstance(message, Started):
                    self._is_up = self._was_ever_up = True
                    self._is_waking = False
                elif isinstance(message, Loading) and self._on_progress is not None:
                    self._on_progress(message)
                passed.append(message)
            if passed:
                self._inbox.put_nowait(passed)

    def _judge(self, reason: str) -> Crashed | Rested:
        """Return what to tell of a dead engine, and count its restart.

        ``is_config`` says that there will be no other: the engine said so, it never got ready, or
        it died too often. One that was asked to end, or that was to wake the server, leaves
        the server asleep.
        """
        last = self._last_words
        if self._rest_s is not None:
            self._rest_s = None
            return Rested()
        problem = last.problem if last is not None else f"The engine process died: {reason}."
        remedy = last.remedy if last is not None else "See its log above."
        if self._is_waking:
            self._is_waking = False
            self._roused.clear()
            return Rested(problem=problem, remedy=remedy)
        now_s = asyncio.get_running_loop().time()
        self._restarts.append(now_s)
        while self._restarts[0] < now_s - RESTART_SPAN_S:
            self._restarts.popleft()
        is_hopeless = (last is not None and last.is_config) or not self._was_ever_up
        if not is_hopeless and len(self._restarts) > self._restart_limit:
            is_hopeless = True
            problem += f" It died {len(self._restarts)} times within ten minutes."
        return Crashed(problem=problem, remedy=remedy, is_config=is_hopeless)

    def _end_group(self, process: asyncio.subprocess.Process) -> None:
        """Kill what the engine started, and itself if it lives; its session is its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    def _kill(self, kind: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(kind)


class _ScarceError(Exception):
    """The system has no more of what a process needs."""


def _scarce(error: _ScarceError) -> Crashed:
    return Crashed(
        problem=f"The engine process cannot be started now: {error}.",
        remedy="Raise the limits on open files, processes and memory.",
        is_config=False,
    )


def _open_link() -> ZmqLink:
    """Return a new link.

    Raises:
        _ScarceError: There are too few descriptors, of which ZeroMQ would end this process.
    """
    try:
        require(_LINK_DESCRIPTORS)
        endpoint = Endpoint()
    except OSError as error:
        raise _ScarceError(error) from error
    try:
        return ZmqLink(endpoint)
    except zmq.ZMQError as error:
        endpoint.remove()
        raise _ScarceError(error) from error


def _how(code: int) -> str:
    """Return in words how a process ended."""
    if code >= 0:
        return f"it exited with status {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"
