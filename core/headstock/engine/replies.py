"""What the engine has to say, in order, until it is sent.

The one place that knows that there is a single API process: with several, this is where columns
are parted by whose request it is.
"""

from __future__ import annotations

from headstock.scheduler import Drawn
from headstock.wire.messages import Ended, FromEngine, Tokens

NO_COUNTS: list[int] = []


class Replies:
    """Collects replies. A request's tokens, or its vector, come before its end."""

    def __init__(self) -> None:
        self._messages: list[FromEngine] = []

    def add(self, message: FromEngine) -> None:
        """Add an answer."""
        self._messages.append(message)

    def add_drawn(self, drawn: Drawn) -> None:
        """Add one columnar message for all that a step drew, and a message for each vector."""
        self._messages += drawn.vectors
        requests = drawn.requests
        if not requests:
            return
        self._messages.append(
            Tokens(
                ids=[request.id for request in requests],
                attempts=[request.attempt for request in requests],
                offsets=drawn.offsets,
                counts=drawn.counts,
                token_ids=drawn.token_ids,
                logprobs=drawn.logprobs,
                cached_tokens=_cached(drawn) if 0 in drawn.offsets else NO_COUNTS,
            )
        )

    def add_ended(self, ended: list[Ended]) -> None:
        """Add the ends of requests."""
        self._messages += ended

    def take(self) -> list[FromEngine]:
        """Return the replies since the last call."""
        messages, self._messages = self._messages, []
        return messages


def _cached(drawn: Drawn) -> list[int]:
    """Return the cached tokens of the requests whose first token was drawn."""
    pairs = zip(drawn.requests, drawn.offsets, strict=True)
    return [max(0, request.cached_tokens) for request, offset in pairs if offset == 0]
