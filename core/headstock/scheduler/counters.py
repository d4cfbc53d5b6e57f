"""What has happened since the start; only ever grows."""

from __future__ import annotations

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
