"""What becomes of requests when the engine dies: they are sent to the next one, which goes on.

A completion's journal is what was asked and what has been drawn: the next engine gets both, as one
more attempt, and emits nothing twice. Who was there when an engine died twice is suspected of
having killed it: suspects are sent by halves, so that the one which crashes alone ends, and the
others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from headstock.requests import FinishReason
from headstock.server.adapters import Adapter
from headstock.server.completion import Completion
from headstock.server.generation import Generation
from headstock.server.journal import Journal
from headstock.server.payers import Account
from headstock.server.records import CompletionRecord
from headstock.wire.messages import Ended, Submit

RESUME_LIMIT_S = 120.0
"""How long requests wait for an engine that died to come back. Seconds."""
SUSPECT_FROM = 2
"""Deaths of the engine that a request was there at, from which it is suspected."""


@dataclass(slots=True)
class Live:
    """A completion that the engine works on, or will.

    Attributes:
        account: Of its payer.
        name: Whose it is, and what its owner calls it.
        sent_s: When its request came. Seconds.
        last_s: When its last tokens came. Seconds.
        adapter: Its LoRA adapter; None: it has none.
        deaths: How many engines died while they had it.
        is_sent: Whether the engine at hand has it.
        is_aborted: Whether the engine was asked to end it: the next engine does not get it.
        journal: Where what it draws is written down; None: nowhere.
        record: Its record; None: none is kept.
    """

    completion: Completion
    generation: Generation
    account: Account
    name: tuple[str, str] | None
    sent_s: float
    last_s: float
    adapter: Adapter | None = None
    deaths: int = 0
    is_sent: bool = True
    is_aborted: bool = False
    journal: Journal | None = None
    record: CompletionRecord | None = None


class Patience:
    """Waits for the next engine, but not for ever.

    Args:
        give_up: Called when it did not come in time.
    """

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._give_up = give_up
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to wait, unless it does so already."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RESUME_LIMIT_S, self._give_up)

    def stop(self) -> None:
        """Wait no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Replay:
    """Decides what is sent again, and when.

    Args:
        live: Every live completion by id; its owner adds and removes.
        send: Sends to the engine at hand.
        end: Ends a completion which had all it needs before the engine could say so.
        fail: Ends a completion that killed the engine by itself.
    """

    def __init__(
        self,
        live: dict[str, Live],
        *,
        send: Callable[[Submit], None],
        end: Callable[[Ended], None],
        fail: Callable[[Live], None],
    ) -> None:
        self._live = live
        self._send = send
        self._end = end
        self._fail = fail
        self.on_trial: set[str] = set()
        """Suspects that the engine at hand has, and that have shown nothing yet."""

    def crashed(self) -> None:
        """Take note that the engine died, with all that it had."""
        there = self._take_back()
        for live in there:
            live.deaths += 1
        if len(there) == 1 and there[0].deaths >= SUSPECT_FROM:
            self._fail(there[0])
        self.end_whole(there)

    def rested(self) -> None:
        """Take note that the engine was ended on purpose, with all that it had."""
        self.end_whole(self._take_back())

    def _take_back(self) -> list[Live]:
        """Return what the engine had; no engine has it now."""
        there = [live for live in self._live.values() if live.is_sent]
        self.on_trial.clear()
        for live in there:
            live.is_sent = False
        return there

    def end_whole(self, there: Sequence[Live]) -> None:
        """End those that need or want no more tokens; only the engine's word was missing."""
        for live in there:
            reason = _whole(live.completion)
            if reason is None and live.is_aborted:
                reason = FinishReason("abort", message="The request was aborted.")
            if reason is not None and live.completion.end is None:
                submit = live.completion.submit
                count = len(live.completion.output_ids)
                self._end(
                    Ended(id=submit.id, attempt=submit.attempt, reason=reason, num_outputs=count)
                )

    def started(self) -> None:
        """Send to a new engine what it should go on with."""
        waiting = [live for live in self._live.values() if not live.is_sent]
        worst = max((live.deaths for live in waiting), default=0)
        if worst >= SUSPECT_FROM:
            suspects = [live for live in waiting if live.deaths == worst]
            waiting = suspects[: max(1, len(suspects) // 2)]
            self.on_trial = {live.completion.submit.id for live in waiting}
        for live in waiting:
            self._resend(live)

    def progressed(self, request_id: str) -> None:
        """Take note that a completion drew tokens or ended; the next suspects may follow.

        Called while some are on trial.
        """
        if request_id not in self.on_trial:
            return
        self.on_trial.discard(request_id)
        live = self._live.get(request_id)
        if live is not None:
            live.deaths = 0
        if not self.on_trial:
            self.started()

    def _resend(self, live: Live) -> None:
        completion = live.completion
        submit = completion.submit
        if not completion.output_ids:
            completion.forget_prompt_logprobs()
        completion.submit = msgspec.structs.replace(
            submit, attempt=submit.attempt + 1, output_ids=list(completion.output_ids)
        )
        live.is_sent = True
        self._send(completion.submit)


def _whole(completion: Completion) -> FinishReason | None:
    """Return how a completion ends that needs no more tokens, or None."""
    submit, outputs = completion.submit, completion.output_ids
    if completion.matched is not None:
        return FinishReason(kind="stop", matched=completion.matched)
    limit = submit.params.max_new_tokens
    is_late = len(outputs) > submit.params.min_new_tokens
    if outputs and outputs[-1] in submit.stop_ids and is_late:
        return FinishReason(kind="stop", matched=outputs[-1])
    if limit is not None and len(outputs) >= limit:
        return FinishReason(kind="length")
    return None
