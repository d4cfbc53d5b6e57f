"""Steps between launch and settle, and what settling them yields."""

from __future__ import annotations

import msgspec

from headstock.scheduler.request import Request
from headstock.wire.messages import Vector
from headstock.wire.requests import TokenLogprobs
from headstock.wire.steps import Logprobs

NO_QUERIES: list[int] = []


class Flight(msgspec.Struct, eq=False):
    """A planned step whose result has not settled.

    Attributes:
        rows: Whose rows it has, in the plan's order.
        slots: Their slots, then.
        sampled: Those of them that draw, in the plan's order.
        num_tokens: Tokens it computes.
        queries: Tokens that each of ``sampled`` computes from the device, at most; empty when
            nothing is drafted. Of a row from the host: 1, it draws one.
        planned_s: Clock reading when it was planned. Seconds.
    """

    step: int
    rows: list[Request]
    slots: list[int]
    sampled: list[Request]
    num_tokens: int
    queries: list[int]
    planned_s: float = 0.0

    @property
    def is_wide(self) -> bool:
        """Whether it verifies drafts: its rows' bounds shrink when it settles."""
        return bool(self.queries) and max(self.queries) > 1

    def by_slot(self) -> dict[int, Request]:
        """Return whose row each slot had in this step."""
        return dict(zip(self.slots, self.rows, strict=True))


class Drawn(msgspec.Struct, eq=False):
    """What a settled step drew for requests that are still wanted; columns of equal length.

    Attributes:
        offsets: Output index of each request's first token here.
        token_ids: The tokens, one request after another.
        logprobs: Of the requests that asked; each of them is in ``requests``.
        vectors: Of the requests that were pooled; none of them is in ``requests``.
    """

    requests: list[Request] = []
    offsets: list[int] = []
    counts: list[int] = []
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    vectors: list[Vector] = []

    def add_vector(self, request: Request, values: bytes) -> None:
        """Add the pooled vector of ``request``: little-endian float32."""
        self.vectors.append(Vector(id=request.id, attempt=request.attempt, values=values))

    def add_logprobs(self, request: Request, logprobs: Logprobs) -> None:
        """Add logprobs of ``request``, which may have drawn nothing that is published."""
        if not logprobs.is_prompt and request.max_outputs == 0:
            return
        if logprobs.is_prompt and request not in self.requests:
            self.requests.append(request)
            self.offsets.append(len(request.outputs))
            self.counts.append(0)
        self.logprobs.append(
            TokenLogprobs(
                id=request.id,
                is_prompt=logprobs.is_prompt,
                chosen=logprobs.chosen,
                top_ids=logprobs.top_ids,
                top=logprobs.top,
                asked=logprobs.asked,
            )
        )
