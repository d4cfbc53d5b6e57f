"""One process that answers frame by frame, and is killed when it does not answer in time.

A frame is four bytes of length, most significant first, and then so many bytes.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence


class LostError(Exception):
    """A process ended, or was ended, before it answered."""


class Process:
    """A Python program that reads frames and writes one for each; used by one thread at a time.

    Args:
        arguments: Of the interpreter: a path, or ``-m`` and a module.

    Raises:
        OSError: No process can be started.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which drains first
            bufsize=0,
        )
        self.close = weakref.finalize(self, _end, self._process)

    @property
    def is_alive(self) -> bool:
        """Whether it may still answer."""
        return self._process.poll() is None

    def ask(self, body: bytes, timeout_s: float) -> bytes:
        """Return what it answers to ``body``.

        Raises:
            LostError: It did not answer in time; it is of no use any more.
        """
        deadline = time.monotonic() + timeout_s
        try:
            self._write(len(body).to_bytes(4, "big") + body, deadline)
            size = int.from_bytes(self._read(4, deadline), "big")
            return self._read(size, deadline)
        except (OSError, LostError) as error:
            self.close()
            raise LostError from error

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
                raise LostError
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)


def _wait(readable: list[int], writable: list[int], deadline: float) -> None:
    """Wait until one is ready.

    Raises:
        LostError: None was before ``deadline``.
    """
    poll = select.poll()
    for descriptor in readable:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writable:
        poll.register(descriptor, select.POLLOUT)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise LostError


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill ``process``, and leave no zombie and no descriptor."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
