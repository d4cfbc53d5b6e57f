"""Looks whether a loop still turns, and writes down where every thread stands when it does not."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable

SOFT_LIMIT_S = 10.0
"""A loop that has not turned for so long is written about. Seconds."""
log = logging.getLogger(__name__)


class Watchdog:
    """Watches one loop from a thread of its own; a context for as long as the loop runs.

    Args:
        name: What is watched.
        turns: Returns a number that grows with each turn; called from the thread.
        limit_s: How long it may stay the same. Seconds.
    """

    def __init__(
        self, name: str, turns: Callable[[], int], *, limit_s: float = SOFT_LIMIT_S
    ) -> None:
        self._name = name
        self._turns = turns
        self._limit_s = limit_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch {name}", daemon=True)

    def __enter__(self) -> Watchdog:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        seen, is_reported = self._turns(), False
        while not self._is_over.wait(self._limit_s):
            turns = self._turns()
            if turns != seen:
                seen, is_reported = turns, False
            elif not is_reported:
                is_reported = True
                log.error(
                    "%s has not turned for %.0f s; its threads:\n%s",
                    self._name, self._limit_s, stacks(),
                )  # fmt: skip


def stacks() -> str:
    """Return where each thread of this process stands. Code only, no values."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()  # pyright: ignore[reportPrivateUsage]
    )
