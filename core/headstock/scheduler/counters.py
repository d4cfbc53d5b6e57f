"""What has happened since the start, and how fast it goes lately."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Monotonic counts.

    Attributes:
        steps: Steps settled.
        prompt_tokens: Prompt tokens of admitted requests, each request once.
        cached_tokens: Of these, found in the cache.
        prefill_tokens: Tokens computed from the host's ids, after retractions again.
        generation_tokens: Output tokens published.
        drafted_tokens: Drafts that steps have verified.
        accepted_tokens: Of these, right.
        retractions: Times that a request lost its pages to others.
        refusals: Requests refused because too many waited.
        faults: Rows that the runner could not compute.
    """

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0
    generation_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    requests_submitted: int = 0
    requests_stop: int = 0
    requests_length: int = 0
    requests_abort: int = 0
    requests_error: int = 0
    retractions: int = 0
    refusals: int = 0
    faults: int = 0

    def count_end(self, kind: str) -> None:
        """Count a request's end by its reason."""
        if kind == "stop":
            self.requests_stop += 1
        elif kind == "length":
            self.requests_length += 1
        elif kind == "abort":
            self.requests_abort += 1
        else:
            self.requests_error += 1

    @property
    def requests_ended(self) -> int:
        """Requests that are over."""
        return self.requests_stop + self.requests_length + self.requests_abort + self.requests_error


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
