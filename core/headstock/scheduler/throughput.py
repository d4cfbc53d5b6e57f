"""How fast requests are served: when a refused one should be sent again."""

from __future__ import annotations

import math

MEMORY_S = 30.0
"""Older steps than this hardly count. Seconds."""
SHORTEST_RETRY_S = 1.0
LONGEST_RETRY_S = 120.0


class Throughput:
    """Tokens computed per second of work, over the recent steps. Idle time does not count."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._last_s: float | None = None

    def start(self, now_s: float) -> None:
        """Note that work begins, after idling."""
        self._last_s = now_s

    def settle(self, num_tokens: int, now_s: float) -> None:
        """Note that a step that computed ``num_tokens`` is over."""
        if self._last_s is None:
            self._last_s = now_s
        elapsed_s = max(0.0, now_s - self._last_s)
        self._last_s = now_s
        weight = math.exp(-elapsed_s / MEMORY_S)
        self._tokens = self._tokens * weight + num_tokens
        self._seconds = self._seconds * weight + elapsed_s

    def retry_after_s(self, num_tokens: float) -> float:
        """Return when ``num_tokens`` of queued work will be done, within sensible bounds."""
        if self._tokens == 0 or self._seconds == 0:
            return SHORTEST_RETRY_S
        wait_s = num_tokens * self._seconds / self._tokens
        return float(math.ceil(min(max(wait_s, SHORTEST_RETRY_S), LONGEST_RETRY_S)))
