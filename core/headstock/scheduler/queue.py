"""Requests that wait for a slot and pages, and how many may."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from headstock.errors import RequestError
from headstock.requests import FinishReason
from headstock.scheduler.counters import Counters, Throughput
from headstock.scheduler.policy import PATIENCE, Policy
from headstock.scheduler.request import Request


class WaitingQueue:
    """Waiting requests, sorted by the policy's key.

    A retracted request keeps its arrival, so it comes back before all that arrived after it.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._keys: list[tuple[int, ...]] = []
        self._requests: list[Request] = []
        self.num_tokens = 0
        self.num_admitted = 0

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        """Add ``request`` to those that wait."""
        self._policy.enter(request)
        key = self._policy.key(request)
        place = bisect_left(self._keys, key)
        self._keys.insert(place, key)
        self._requests.insert(place, request)
        self._policy.let_pass(self._requests, place)
        self.num_tokens += len(request.prompt)
        request.overtaken_at = self.num_admitted + place + PATIENCE

    def remove(self, request: Request) -> None:
        """Take ``request``, which must wait, out."""
        place = 0
        if self._requests[0] is not request:
            place = bisect_left(self._keys, self._policy.key(request))
        assert self._requests[place] is request, f"request {request.id!r} does not wait"
        del self._keys[place]
        del self._requests[place]
        self.num_tokens -= len(request.prompt)

    def admit(self, request: Request) -> None:
        """Take ``request`` out, for it runs from now on."""
        self.remove(request)
        self._policy.leave(request)
        self.num_admitted += 1

    def end(self, request: Request) -> None:
        """Note that ``request``, which waits or runs no longer, is over."""
        self._policy.end(request)

    def order(self, cached: Callable[[Request], int]) -> Sequence[Request]:
        """Return the requests to try now, in the policy's order; a copy, safe to remove from."""
        return list(self._policy.order(self._requests, cached, self.num_admitted))


class QueueBounds:
    """How much may wait, and when a refused client should come back.

    Args:
        queue: Who waits.
        counters: What was served so far.
        max_requests: Requests that may wait, beyond those there are slots for.
        max_tokens: Prompt tokens that may wait.
    """

    def __init__(
        self, queue: WaitingQueue, counters: Counters, max_requests: int, max_tokens: int
    ) -> None:
        self.throughput = Throughput()
        self._queue = queue
        self._counters = counters
        self._max_requests = max_requests
        self._max_tokens = max_tokens

    def check(self, request: Request, *, num_free: int) -> None:
        """Refuse ``request`` when enough wait already.

        Args:
            request: One more.
            num_free: Slots that are free for those who wait.

        Raises:
            RequestError: Code ``queue_full``.
        """
        num_queued = len(self._queue) - num_free
        num_tokens = self._queue.num_tokens + len(request.prompt)
        if num_queued < self._max_requests and (num_queued < 0 or num_tokens <= self._max_tokens):
            return
        self._counters.refusals += 1
        raise RequestError(
            f"{len(self._queue)} requests with {self._queue.num_tokens} prompt tokens wait"
            f" already; at most {self._max_requests} requests or {self._max_tokens} tokens may.",
            remedy="Send the request again later.",
            code="queue_full",
        )

    def refusal(self, error: RequestError) -> FinishReason:
        """Return how a request ends that ``error`` keeps out."""
        retry_after_s = None
        if error.code == "queue_full":
            ended = max(1, self._counters.requests_ended)
            mean_outputs = self._counters.generation_tokens / ended
            work = self._queue.num_tokens + len(self._queue) * mean_outputs
            retry_after_s = self.throughput.retry_after_s(work)
        return FinishReason(
            "error",
            message=f"{error.problem} {error.remedy}",
            code=error.code,
            retry_after_s=retry_after_s,
        )
