"""Processes that render one chat template, each answer within bounds of time and memory."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CPU_LIMIT_S = 0.5
"""Processor time that one rendering may take. Seconds."""
WALL_LIMIT_S = 10.0
"""A process that does not answer by then is killed: the machine is busy beyond use. Seconds."""
MEMORY_LIMIT = 512 * 2**20
"""Address space of a process. Bytes."""
MAX_CHARACTERS = 16 * 2**20
"""Longest text that a rendering may give."""
MAX_IDLE = 2
"""Processes that are kept while nothing is rendered."""
_PROGRAM = Path(__file__).with_name("render_process.py")


class RenderLostError(Exception):
    """A process ended, or was ended, before it answered."""


class RenderProcess:
    """One process with one template; used by one thread at a time.

    Args:
        source: The template.

    Raises:
        OSError: No process can be started.
    """

    def __init__(self, source: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which drains first
            bufsize=0,
        )
        self.close = weakref.finalize(self, _end, self._process)
        limits = {
            "cpu_s": CPU_LIMIT_S,
            "memory_bytes": MEMORY_LIMIT,
            "max_characters": MAX_CHARACTERS,
        }
        self._hello: dict[str, Any] = {"source": source, **limits}
        self._compiled: dict[str, Any] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it may still answer."""
        return self._process.poll() is None

    def compile(self) -> dict[str, Any]:
        """Return what it says of the template: nothing, or an ``error`` and its ``message``.

        Raises:
            RenderLostError: It did not answer.
        """
        if self._compiled is None:
            self._compiled = self._ask(self._hello)
        return self._compiled

    def render(self, variables: Mapping[str, object]) -> dict[str, Any]:
        """Return ``text``, or an ``error`` and its ``message``.

        Raises:
            RenderLostError: It did not answer within the limits; it is of no use any more.
            TypeError: A variable is no JSON.
            ValueError: Likewise.
        """
        compiled = self.compile()
        return compiled if "error" in compiled else self._ask(variables)

    def _ask(self, value: Mapping[str, object]) -> dict[str, Any]:
        body = json.dumps(value).encode()
        deadline = time.monotonic() + WALL_LIMIT_S
        try:
            self._write(len(body).to_bytes(4, "big") + body, deadline)
            size = int.from_bytes(self._read(4, deadline), "big")
            return json.loads(self._read(size, deadline))
        except (OSError, RenderLostError) as error:
            self.close()
            raise RenderLostError from error

    def _write(self, frame: bytes, deadline: float) -> None:
        assert self._process.stdin is not None, "made with a pipe"
        descriptor = self._process.stdin.fileno()
        os.set_blocking(descriptor, False)
        view = memoryview(frame)
        while view:
            _wait([], [descriptor], deadline)
            view = view[os.write(descriptor, view) :]

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None, "made with a pipe"
        descriptor = self._process.stdout.fileno()
        chunks: list[bytes] = []
        while size:
            _wait([descriptor], [], deadline)
            chunk = os.read(descriptor, min(size, 2**20))
            if not chunk:
                raise RenderLostError
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)


class RenderPool:
    """Renders one template from any thread; a process that was lost is replaced.

    Args:
        source: The template.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._idle: queue.LifoQueue[RenderProcess] = queue.LifoQueue(MAX_IDLE)

    def compile(self) -> dict[str, Any]:
        """Return what a process says of the template: nothing, or an ``error``.

        Raises:
            RenderLostError: It took more than the limits.
            OSError: No process can be started.
        """
        process = self._take()
        answer = process.compile()
        self._give_back(process)
        return answer

    def render(self, variables: Mapping[str, object]) -> dict[str, Any]:
        """Return ``text``, or an ``error`` and its ``message``.

        Raises:
            RenderLostError: It took more than the limits.
            OSError: No process can be started.
            TypeError: A variable is no JSON.
            ValueError: Likewise.
        """
        process = self._take()
        if not process.is_alive:  # it was ended while idle: no fault of what is rendered now
            process.close()
            process = RenderProcess(self._source)
        try:
            answer = process.render(variables)
        except (TypeError, ValueError, RecursionError):
            self._give_back(process)
            raise
        self._give_back(process)
        return answer

    def close(self) -> None:
        """End the processes that are idle."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _take(self) -> RenderProcess:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return RenderProcess(self._source)

    def _give_back(self, process: RenderProcess) -> None:
        try:
            self._idle.put_nowait(process)
        except queue.Full:
            process.close()


def _wait(readable: list[int], writable: list[int], deadline: float) -> None:
    """Wait until one is ready.

    Raises:
        RenderLostError: None was before ``deadline``.
    """
    poll = select.poll()
    for descriptor in readable:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writable:
        poll.register(descriptor, select.POLLOUT)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise RenderLostError


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill ``process``, and leave no zombie and no descriptor."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
