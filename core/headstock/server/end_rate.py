"""How fast requests end, and so when a place will be free."""

from __future__ import annotations

import asyncio
from collections import deque

WINDOW = 64
"""Ends that are looked back at."""
BOUNDS_S = (1.0, 60.0)


class EndRate:
    """The last ends of requests; used from one event loop."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=WINDOW)

    def note(self, now_s: float) -> None:
        """Take note of an end, by the event loop's clock."""
        self._ends.append(now_s)

    def retry_after_s(self, num_live: int) -> float:
        """Return when a refused request should try again. Seconds."""
        low, high = BOUNDS_S
        if len(self._ends) < 2:
            return low
        span = asyncio.get_running_loop().time() - self._ends[0]
        return min(high, max(low, num_live / 2 * span / len(self._ends)))
