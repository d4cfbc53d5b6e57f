"""Processes that are kept while they are idle, and made anew when they are lost."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from headstock.sandbox.process import LostError

ENDED_BEFORE_S = 0.2
"""A process that is lost sooner than this after it was asked had ended before. Seconds."""


class Keepable(Protocol):
    """A process with something started in it."""

    @property
    def is_alive(self) -> bool:
        """Whether it may still answer."""
        ...

    @property
    def close(self) -> Callable[[], object | None]:
        """Ends it."""
        ...


K = TypeVar("K", bound=Keepable)
R = TypeVar("R")


class Pool(Generic[K]):
    """Lends processes to any thread.

    Args:
        make: Starts one.
        max_idle: Kept while they are not used.
    """

    def __init__(self, make: Callable[[], K], max_idle: int) -> None:
        self._make = make
        self._idle: queue.LifoQueue[K] = queue.LifoQueue(max_idle)

    def call(self, ask: Callable[[K], R]) -> R:
        """Return what ``ask`` gets from a process.

        One that was ended while it was idle is no fault of what is asked now: another is asked.

        Args:
            ask: Asks the process that it is given, which stays of use if it raises but LostError.

        Raises:
            LostError: The process did not answer.
            OSError: No process can be started.
        """
        process = self._take_idle()
        if process is not None:
            began_s = time.monotonic()
            try:
                return self._ask(process, ask)
            except LostError:
                if time.monotonic() - began_s > ENDED_BEFORE_S:
                    raise
        return self._ask(self._make(), ask)

    def _take_idle(self) -> K | None:
        """Return one that is alive as far as can be seen."""
        while True:
            try:
                process = self._idle.get_nowait()
            except queue.Empty:
                return None
            if process.is_alive:
                return process
            process.close()

    def _ask(self, process: K, ask: Callable[[K], R]) -> R:
        try:
            answer = ask(process)
        except LostError:
            raise
        except Exception:
            self._give_back(process)
            raise
        self._give_back(process)
        return answer

    def _give_back(self, process: K) -> None:
        """Keep ``process`` for the next, unless there are enough."""
        try:
            self._idle.put_nowait(process)
        except queue.Full:
            process.close()

    def close(self) -> None:
        """End the processes that are idle."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return
