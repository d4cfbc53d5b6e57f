"""Requests whose draws obey masks: they wait here until their grammars are compiled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from headstock.engine.token_rules import TokenRules
from headstock.errors import RequestError
from headstock.requests import FinishReason, Grammar
from headstock.scheduler import Request, Scheduler
from headstock.structured.compiler import Ticket
from headstock.structured.provider import CompiledGrammar, Matcher, ProviderError
from headstock.wire.messages import Ended, Submit
from headstock.wire.steps import Masks, StepPlan

log = logging.getLogger(__name__)


class Compiler(Protocol):
    """Compiles grammars beside the engine; ``structured.GrammarCompiler`` is one."""

    @property
    def eos_ids(self) -> list[int]:
        """Ids that a grammar takes for the end of the output."""
        ...

    def start(self, grammar: Grammar) -> Ticket:
        """Return the ticket of ``grammar``, which may be done already."""
        ...

    def masks(self, matchers: Sequence[Matcher]) -> list[bytearray]:
        """Return which ids may come next for each of ``matchers``.

        Raises:
            ProviderError: What computes them failed.
        """
        ...

    def close(self) -> None:
        """End what was started."""
        ...


@dataclass(slots=True)
class _Waiting:
    """A request whose grammar is being compiled."""

    submit: Submit
    ticket: Ticket
    since_s: float


@dataclass(slots=True)
class _Followed:
    """A request whose draws obey masks.

    Attributes:
        compiled: Its grammar; None: it has none.
        rules: The caller's lists and limits; None: it has none.
        field: What the caller calls the grammar.
        matcher: Made when its first mask is needed.
        num_outputs: Outputs that the matcher has taken in.
    """

    compiled: CompiledGrammar | None
    rules: TokenRules | None
    field: str
    matcher: Matcher | None = None
    num_outputs: int = 0


class GrammarDesk:
    """Keeps requests until their grammars are compiled, and matchers until their requests end.

    A matcher follows its request's settled outputs, however they were drawn: replay and retraction
    need nothing of their own.

    Args:
        scheduler: Gets the requests.
        compiler: None: no grammar can be served.
        why_not: Why there is no compiler, for callers.
        max_waiting: Requests that may wait for compilation.

    Attributes:
        waiting: Requests whose grammars are being compiled, by id.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        compiler: Compiler | None,
        *,
        why_not: str = "",
        max_waiting: int = 2048,
    ) -> None:
        self._scheduler = scheduler
        self._compiler = compiler
        self._why_not = why_not
        self._max_waiting = max_waiting
        self.waiting: dict[str, _Waiting] = {}
        self._followed: dict[tuple[str, int], _Followed] = {}
        self._anything = b"\xff" * (-(-scheduler.limits.vocab_size // 32) * 4)

    # Requests on their way to the scheduler

    def take(self, submit: Submit, now_s: float) -> None:
        """Keep ``submit``, which is masked, until its grammar is compiled, if it has one."""
        grammar = submit.grammar
        if grammar is None:
            self._follow(submit, None, now_s)
            return
        earlier = self.waiting.get(submit.id)
        if earlier is not None:
            if earlier.submit.attempt >= submit.attempt:
                return
            self.abort(submit.id, "The request was sent again.")
        if self._compiler is None:
            self._refuse(submit, RequestError(self._why_not, remedy="", code="not_supported"))
        elif len(self.waiting) >= self._max_waiting:
            busy = f"{len(self.waiting)} requests wait for their grammars already."
            self._refuse(submit, RequestError(busy, remedy="Try again later.", code="queue_full"))
        else:
            self.waiting[submit.id] = _Waiting(submit, self._compiler.start(grammar), now_s)
            self.admit(now_s)

    def admit(self, now_s: float) -> None:
        """Hand on the requests whose grammars are compiled, and refuse those it failed for."""
        for waiting in list(self.waiting.values()):
            ticket, submit = waiting.ticket, waiting.submit
            if not ticket.is_done:
                continue
            del self.waiting[submit.id]
            if ticket.error is not None:
                self._refuse(submit, ticket.error)
                continue
            assert ticket.compiled is not None, "a ticket is done without its grammar"
            self._follow(submit, ticket.compiled, now_s, now_s - waiting.since_s)

    def _follow(
        self,
        submit: Submit,
        compiled: CompiledGrammar | None,
        now_s: float,
        prepared_s: float = 0.0,
    ) -> None:
        """Hand on a request of which all is known that its masks need."""
        rules = None
        if submit.has_rules:
            vocab_size = self._scheduler.limits.vocab_size
            limit = submit.thoughts
            rules = TokenRules(submit.allowed_ids, submit.banned, vocab_size, limit)
        self._followed[submit.id, submit.attempt] = _Followed(compiled, rules, _field(submit))
        self._scheduler.submit(submit, now_s, prepared_s)

    def abort(self, request_id: str, message: str = "The request was aborted.") -> None:
        """End a request that waits here; does nothing when there is none of that id."""
        waiting = self.waiting.pop(request_id, None)
        if waiting is not None:
            self._scheduler.refuse(waiting.submit, FinishReason("abort", message=message))

    def abort_all(self) -> None:
        """End every request that waits here."""
        for request_id in list(self.waiting):
            self.abort(request_id, "All requests were aborted.")

    def abort_adapter(self, adapter: str) -> None:
        """End the requests that wait here and have an adapter that is unloaded."""
        for request_id, waiting in list(self.waiting.items()):
            if waiting.submit.adapter == adapter:
                self.abort(request_id, "The adapter was unloaded.")

    def forget(self, ended: Sequence[Ended]) -> None:
        """Drop the matchers of requests that are over."""
        if self._followed:
            for end in ended:
                self._followed.pop((end.id, end.attempt), None)

    def close(self) -> None:
        """End what compiles."""
        if self._compiler is not None:
            self._compiler.close()

    def _refuse(self, submit: Submit, error: RequestError) -> None:
        field = _field(submit)
        message = f"{error.problem} {error.remedy}".strip()
        reason = FinishReason(
            "error",
            message=f"{field}: {message}" if field else message,
            code=error.code,
            field=field or None,
        )
        self._scheduler.refuse(submit, reason)

    # Masks

    def anything(self, plan: StepPlan) -> Masks:
        """Return masks under which everything may be drawn, for a step that does not count."""
        return Masks(plan.masked, [self._anything] * len(plan.masked))

    def masks(self, plan: StepPlan) -> Masks:
        """Return what the masked rows of ``plan``, the one launched last, may draw.

        All steps before it have settled. Requests whose grammar is complete or cannot go on end
        here; for their rows everything is allowed, since nothing of it counts.
        """
        requests = self._scheduler.masked(plan)
        words: list[bytes] = [self._anything] * len(requests)
        places: list[int] = []
        matchers: list[Matcher] = []
        for place, request in enumerate(requests):
            if request.is_over:
                continue
            followed = self._followed[request.id, request.attempt]
            if followed.compiled is None:
                words[place] = self._ruled(request, followed)
            elif (matcher := self._matcher(request, followed, followed.compiled)) is not None:
                places.append(place)
                matchers.append(matcher)
        if matchers:
            found = self._found([requests[place] for place in places], matchers)
            for place, matcher, mask in zip(places, matchers, found, strict=False):
                if self._finish_mask(requests[place], matcher, mask) and self._restrict(
                    requests[place], mask
                ):
                    words[place] = bytes(mask)
        return Masks(plan.masked, words)

    def _found(self, requests: Sequence[Request], matchers: Sequence[Matcher]) -> list[bytearray]:
        """Return the provider's masks; should it fail, ``requests`` end and there are none."""
        assert self._compiler is not None, "there are matchers and no compiler"
        try:
            return self._compiler.masks(matchers)
        except ProviderError as error:
            log.exception("The grammar provider failed; its requests end, the others continue")
            for request in requests:
                self._fail(request, f"{error}.", "computation_failed")
            return []

    def _ruled(self, request: Request, followed: _Followed) -> bytes:
        """Return the mask of a request that has lists of ids and no grammar."""
        assert followed.rules is not None, f"{request.id} is masked by nothing"
        mask = followed.rules.mask(request.outputs)
        if mask.count(0) == len(mask):
            self._fail_empty(request)
            return self._anything
        return bytes(mask)

    def _matcher(
        self, request: Request, followed: _Followed, compiled: CompiledGrammar
    ) -> Matcher | None:
        """Return the matcher of ``request`` where its outputs stand; None: it has ended."""
        if followed.matcher is None:
            followed.matcher = compiled.matcher()
        matcher = followed.matcher
        fresh = request.outputs[followed.num_outputs :]
        followed.num_outputs += len(fresh)
        num_taken = matcher.advance(fresh) if fresh else 0
        if num_taken == len(fresh):
            return matcher
        if matcher.error:
            self._fail(request, matcher.error, "grammar_too_complex")
        else:
            why = f"it does not allow token {fresh[num_taken]}, which was drawn."
            self._fail(request, why, "computation_failed")
        return None

    def _finish_mask(self, request: Request, matcher: Matcher, mask: bytearray) -> bool:
        """Allow the ids that end ``request`` only where its grammar may end.

        Returns:
            False: the request has ended instead.
        """
        if matcher.error:
            self._fail(request, matcher.error, "grammar_too_complex")
            return False
        assert self._compiler is not None, "there is a mask and no compiler"
        stop_ids = request.stop_ids
        wanted = [token_id for token_id in stop_ids if _has(mask, token_id)]
        eos_ids = self._compiler.eos_ids
        for token_id in (*eos_ids, *stop_ids):
            mask[token_id >> 3] &= ~(1 << (token_id & 7))
        is_empty = mask.count(0) == len(mask)
        if matcher.can_end:
            if is_empty:
                self._scheduler.finish(request, FinishReason("stop"))
                return False
            wanted = stop_ids
        elif is_empty:
            # Only a stop id of the caller's may follow here: then that ends it, as asked.
            wanted = [token_id for token_id in wanted if token_id not in eos_ids]
            if not wanted:
                why = "no token of this model's vocabulary may follow here."
                self._fail(request, why, "invalid_grammar")
                return False
        else:
            return True
        for token_id in wanted:
            mask[token_id >> 3] |= 1 << (token_id & 7)
        return True

    def _restrict(self, request: Request, mask: bytearray) -> bool:
        """Take out what the caller's lists forbid; False: nothing is left, and it has ended."""
        rules = self._followed[request.id, request.attempt].rules
        if rules is None:
            return True
        rules.restrict(mask, request.outputs)
        if mask.count(0) < len(mask):
            return True
        self._fail_empty(request)
        return False

    def _fail_empty(self, request: Request) -> None:
        message = "The lists and limits of this request leave no token that may come next."
        reason = FinishReason("error", message=message, code="invalid_value")
        self._scheduler.finish(request, reason)

    def _fail(self, request: Request, why: str, code: str) -> None:
        field = self._followed[request.id, request.attempt].field
        message = f"{field}: the output cannot follow its grammar any further: {why}"
        reason = FinishReason("error", message=message, code=code, field=field or None)
        self._scheduler.finish(request, reason)


def _field(submit: Submit) -> str:
    """Return what the caller calls the grammar."""
    return "" if submit.grammar is None else submit.grammar.field


def _has(mask: bytearray, token_id: int) -> bool:
    return bool(mask[token_id >> 3] >> (token_id & 7) & 1)
