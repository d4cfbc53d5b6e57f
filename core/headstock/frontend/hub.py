"""The event loop that all programs of this process share: one thread, however many states."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from headstock.frontend.errors import ProgramError, caller

T = TypeVar("T")


class Hub:
    """An event loop in a thread of its own, which starts with it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.pid = os.getpid()
        self._thread = threading.Thread(
            target=self.loop.run_forever, name="headstock-programs", daemon=True
        )
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether the caller runs in the loop's thread, where it must not wait."""
        return threading.current_thread() is self._thread

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call ``function`` in the loop, soon."""
        self.loop.call_soon_threadsafe(function, *args)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` in the loop and return its result.

        Raises:
            ProgramError: The caller is in the loop itself.
        """
        self.check_outside()
        return self.submit(work).result()

    def check_outside(self) -> None:
        """Refuse to wait in the loop's own thread.

        Raises:
            ProgramError: This is that thread.
        """
        if self.is_here:
            raise ProgramError(
                "An async program would wait for its own event loop here.",
                remedy='Use `await s.get("name")`, `await s.async_text()`, `await f.run_async()`.',
                line=caller(),
            )


class _Ambient:
    """What a process has one of: its hub."""

    def __init__(self) -> None:
        self._hub: Hub | None = None
        self._lock = threading.Lock()

    def hub(self) -> Hub:
        """Return the hub; a forked process gets its own."""
        with self._lock:
            if self._hub is None or self._hub.pid != os.getpid():
                self._hub = Hub()
            return self._hub


hub = _Ambient().hub
