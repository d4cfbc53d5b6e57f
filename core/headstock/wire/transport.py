"""How messages travel between an API process and its engine.

Two ends: the engine's :class:`Mailbox` blocks, the API's :class:`EngineLink` is asynchronous. Two
ways between them: ZeroMQ over a Unix socket in a private directory, and a pair in memory for an
engine in a thread of the same process. Messages are sent in batches, a frame each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import zmq

from headstock.requests import FinishReason
from headstock.wire import codec
from headstock.wire.folders import PrivateFolder
from headstock.wire.messages import Crashed, Ended, FromEngine, State, ToEngine

log = logging.getLogger(__name__)


class Mailbox(Protocol):
    """The engine's end; used by one thread."""

    @property
    def num_received(self) -> int:
        """Messages that came since it was made."""
        ...

    def receive(self, timeout_s: float | None) -> list[ToEngine]:
        """Return all messages that are there.

        Args:
            timeout_s: Wait at most so long for a first one; 0 does not wait, None waits for ever.
        """
        ...

    def send(self, messages: Sequence[FromEngine]) -> None:
        """Send ``messages`` as one batch; never blocks."""
        ...

    def close(self) -> None:
        """Close the transport, after what was sent is out."""
        ...


class EngineLink(Protocol):
    """The API process's end; used from one event loop."""

    @property
    def unheard_s(self) -> float:
        """How long the oldest message has waited that the engine has not taken in. Seconds."""
        ...

    def send(self, message: ToEngine) -> None:
        """Send soon: messages of one turn of the event loop travel together.

        Raises:
            RequestError: ``message`` cannot be encoded; nothing was sent.
        """
        ...

    async def receive(self) -> list[FromEngine]:
        """Wait for messages and return all that are there; an empty list: the link is closed."""
        ...

    def close(self) -> None:
        """Close the transport; a waiting :meth:`receive` returns."""
        ...


class Receipts:
    """Whether the other end takes in what is sent, judged by how many messages it has counted.

    A mark is set at the number sent so far; when it is reached, at the number sent by then. So
    nothing is kept for a single message.

    Args:
        clock: Monotonic. Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._num_sent = 0
        self._mark = 0
        self._marked_s: float | None = None

    def sent(self) -> None:
        """Count a message that was sent."""
        self._num_sent += 1
        if self._marked_s is None:
            self._mark, self._marked_s = self._num_sent, self._clock()

    def heard(self, num_received: int) -> None:
        """Take note of what the other end has counted."""
        if num_received < self._mark:
            return
        if num_received >= self._num_sent:
            self._marked_s = None
        else:
            self._mark, self._marked_s = self._num_sent, self._clock()

    @property
    def unheard_s(self) -> float:
        """How long the mark has not been reached; 0: nothing is on its way. Seconds."""
        return 0.0 if self._marked_s is None else self._clock() - self._marked_s


class Endpoint:
    """A Unix socket's address in a directory that only this user can enter."""

    def __init__(self) -> None:
        self._folder = PrivateFolder()
        self.directory = self._folder.path
        self.address = f"ipc://{self.directory}/{secrets.token_hex(4)}.sock"

    def remove(self) -> None:
        """Delete the directory."""
        self._folder.remove()


class ZmqMailbox:
    """The engine's end of a ZeroMQ link.

    Args:
        address: Where the API process listens.
    """

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        _set_options(self._socket)
        self._socket.connect(address)
        self._num_received = 0

    @property
    def num_received(self) -> int:
        """Messages that came since it was made, those that could not be read too."""
        return self._num_received

    def receive(self, timeout_s: float | None) -> list[ToEngine]:
        """Return all messages that are there; wait for a first one up to ``timeout_s``."""
        if timeout_s != 0:  # a poll costs more than a look, and there is one every step
            self._socket.poll(None if timeout_s is None else max(0, int(timeout_s * 1000)))
        messages: list[ToEngine] = []
        while _has_frame(self._socket):
            read = self._read(self._socket.recv(zmq.NOBLOCK))
            self._num_received += len(read)
            messages += read
        return messages

    def _read(self, frame: bytes) -> list[ToEngine]:
        """Return the messages of ``frame``; one that cannot be read ends its own request only."""
        try:
            return codec.decode_to_engine(frame)
        except msgspec.DecodeError:
            messages, faults = codec.decode_each_to_engine(frame)
        self._num_received += len(faults)
        for who, error in faults:
            log.error("A message to the engine cannot be read: %s", error)
            if who is not None:
                self.send([_unreadable(who)])
        return messages

    def send(self, messages: Sequence[FromEngine]) -> None:
        """Send ``messages`` as one frame."""
        if messages:
            self._socket.send(codec.encode(messages))

    def close(self) -> None:
        """Close the socket; gives what was sent a second to leave."""
        self._socket.close(linger=1000)
        self._context.term()


class ZmqLink:
    """The API process's end of a ZeroMQ link: listens at an endpoint; made inside its event loop.

    The socket's descriptor signals edges only, and sending may swallow one, so that reads are
    looked for after each send too.

    Args:
        endpoint: Where; the link removes it when it closes.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        _set_options(self._socket)
        self._socket.bind(endpoint.address)
        self._loop = asyncio.get_running_loop()
        self._descriptor = self._socket.fileno()
        self._loop.add_reader(self._descriptor, self._read)
        self._outbox: list[bytes] = []
        self._receipts = Receipts(self._loop.time)
        self._is_flush_due = False
        self._inbox: list[FromEngine] = []
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False

    def send(self, message: ToEngine) -> None:
        """Queue ``message``; the batch leaves at the end of this turn of the event loop.

        It is encoded here, so that a message which cannot be fails by itself.
        """
        if self._is_closed:
            return
        self._outbox.append(codec.encode_one(message))
        self._receipts.sent()
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    @property
    def address(self) -> str:
        """Where the engine connects to."""
        return self._endpoint.address

    @property
    def unheard_s(self) -> float:
        """How long the oldest message has waited that the engine has not taken in. Seconds."""
        return self._receipts.unheard_s

    async def receive(self) -> list[FromEngine]:
        """Wait for messages and return all that are there."""
        while not self._inbox and not self._is_closed:
            self._waiter = self._loop.create_future()
            await self._waiter
        messages, self._inbox = self._inbox, []
        return messages

    def close(self) -> None:
        """Close the socket, remove the endpoint and wake a waiting :meth:`receive`."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._descriptor)
        self._socket.close(linger=0)
        self._context.term()
        self._endpoint.remove()
        self._wake()

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._is_closed or not self._outbox:
            return
        try:
            self._socket.send(codec.join(self._outbox), zmq.NOBLOCK)
        except zmq.Again:  # the engine has not connected yet
            self._is_flush_due = True
            self._loop.call_later(_RETRY_S, self._flush)
            return
        self._outbox = []
        self._read()

    def _read(self) -> None:
        """Take frames that are there; leaves the rest to another turn of the event loop."""
        if self._is_closed:
            return
        for _ in range(_MAX_FRAMES):
            if not _has_frame(self._socket):
                break
            self._inbox += self._decode(self._socket.recv(zmq.NOBLOCK))
        else:
            self._loop.call_soon(self._read)
        if self._inbox:
            self._wake()

    def _decode(self, frame: bytes) -> list[FromEngine]:
        """Return the messages of ``frame``; an engine that cannot be understood is as good as dead.

        What it said is lost, and requests would wait for it for ever.
        """
        try:
            messages = codec.decode_from_engine(frame)
        except msgspec.DecodeError as error:
            problem = f"The engine sent what cannot be read: {error}."
            return [Crashed(problem=problem, remedy="Report it.", is_config=False)]
        for message in messages:
            if isinstance(message, State) and message.received is not None:
                self._receipts.heard(message.received)
        return messages

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class MemoryMailbox:
    """The engine's end of a link within a process; the engine runs in a thread."""

    num_received = 0
    """Not counted: nothing is lost on the way, and no count is read."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._link: MemoryLink | None = None

    def receive(self, timeout_s: float | None) -> list[ToEngine]:
        """Return all messages that are there; wait for a first one up to ``timeout_s``."""
        messages: list[ToEngine] = []
        with contextlib.suppress(queue.Empty):
            if timeout_s == 0:
                messages.append(self._inbox.get_nowait())
            else:
                messages.append(self._inbox.get(timeout=timeout_s))
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def send(self, messages: Sequence[FromEngine]) -> None:
        """Hand ``messages`` to the event loop of the other end."""
        if messages and self._link is not None:
            self._link.put(list(messages))

    def close(self) -> None:
        """Wake the other end for the last time."""
        if self._link is not None:
            self._link.put(None)

    def join(self, link: MemoryLink) -> None:
        """Name the other end."""
        self._link = link

    def put(self, message: ToEngine) -> None:
        """Take a message; any thread."""
        self._inbox.put(message)


class MemoryLink:
    """The API side's end of a link within a process; made inside its event loop."""

    unheard_s = 0.0
    """Nothing is lost on the way."""

    def __init__(self, mailbox: MemoryMailbox) -> None:
        self._mailbox = mailbox
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[list[FromEngine] | None] = asyncio.Queue()

    def send(self, message: ToEngine) -> None:
        """Hand ``message`` to the engine's thread."""
        self._mailbox.put(message)

    async def receive(self) -> list[FromEngine]:
        """Wait for messages and return all that are there."""
        batch = await self._inbox.get()
        messages: list[FromEngine] = list(batch or ())
        while batch is not None and not self._inbox.empty():
            batch = self._inbox.get_nowait()
            messages += batch or ()
            if batch is None and messages:
                self._inbox.put_nowait(None)
        return messages

    def close(self) -> None:
        """Wake a waiting :meth:`receive`."""
        self._inbox.put_nowait(None)

    def put(self, messages: list[FromEngine] | None) -> None:
        """Take messages from the engine's thread; None: there will be no more."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing listens any more
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, messages)


def memory_pair() -> tuple[MemoryMailbox, MemoryLink]:
    """Return both ends of a link within this process; call it inside the API side's event loop."""
    mailbox = MemoryMailbox()
    link = MemoryLink(mailbox)
    mailbox.join(link)
    return mailbox, link


_RETRY_S = 0.01
"""How soon to try again to send to an engine that has not connected yet. Seconds."""
_MAX_FRAMES = 64
"""Frames taken in one go, so that a fast engine cannot keep the event loop from its other work."""


def _unreadable(who: codec.Who) -> Ended:
    reason = FinishReason(
        kind="error", message="The engine cannot read the request.", code="internal_error"
    )
    return Ended(id=who.id, attempt=who.attempt, reason=reason, num_outputs=0)


def _set_options(socket: zmq.Socket[bytes]) -> None:
    """No high-water mark: admission is bounded by the engine, and an end never blocks."""
    socket.set(zmq.SNDHWM, 0)
    socket.set(zmq.RCVHWM, 0)


def _has_frame(socket: zmq.Socket[bytes]) -> bool:
    """Return whether a frame is there; cheaper than a receive that may fail."""
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)
