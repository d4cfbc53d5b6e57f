"""How fast requests end, and so when a place will be free."""

from __future__ import annotations

from collections import deque

WINDOW = 64
"""Ends that are looked back at."""
RECENT_S = 30.0
"""Older ends say nothing of how fast requests end now. Seconds."""
BOUNDS_S = (1.0, 60.0)


class EndRate:
    """The last ends of requests."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=WINDOW)

    def note(self, now_s: float) -> None:
        """Take note of an end, by the event loop's clock."""
        self._ends.append(now_s)

    def mean_s(self, now_s: float) -> float | None:
        """Return the mean time between two ends, lately; None: not known. Seconds."""
        recent = [end for end in self._ends if end > now_s - RECENT_S]
        return (now_s - recent[0]) / len(recent) if len(recent) > 1 else None

    def retry_after_s(self, num_live: int, now_s: float) -> float:
        """Return when a place is likely to be free. Seconds."""
        low, high = BOUNDS_S
        if len(self._ends) < 2:
            return low
        span = now_s - self._ends[0]
        return min(high, max(low, num_live / 2 * span / len(self._ends)))
