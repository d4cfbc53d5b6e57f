"""What the engine says, given to the completions that it is about.

One event loop owns a delivery. It decides nothing about who may enter: that is the front door.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from headstock.errors import RequestError
from headstock.requests import FinishReason
from headstock.server.adapters import Adapter, AdapterBook
from headstock.server.completion import Completion, Delta
from headstock.server.engine_calls import EngineCalls, EngineStatus
from headstock.server.errors import BusyError, defect, error_of, killer
from headstock.server.generation import Generation
from headstock.server.journals import Journals
from headstock.server.observer import Observer
from headstock.server.places import Names, Places
from headstock.server.records import RecordBook
from headstock.server.replay import Live, Patience, Replay
from headstock.server.sleep import Sleeping
from headstock.server.weights import WeightsBook
from headstock.wire.messages import (
    Abort,
    AdapterReply,
    Crashed,
    Cut,
    Ended,
    Flushed,
    FromEngine,
    Pause,
    PauseMode,
    Rested,
    Started,
    State,
    ToEngine,
    Tokens,
    UpkeepReply,
    Vector,
    WeightRows,
)
from headstock.wire.requests import TokenLogprobs

log = logging.getLogger(__name__)


class Delivery:
    """Keeps the live completions, and ends each of them exactly once.

    Args:
        send: Sends to the engine.
        status: Hears every message.
        adapters: Hears what concerns adapters.
        weights: Hears what concerns the model's weights.
        calls: Gets the answers to questions.
        places: Where a completion's place is given back at its end.
        names: Where its name is.
        observer: Hears of tokens and ends.
        records: Hears of ends, too.
        notify: Called when something may have changed that others wait for.
        journals: Where calls that can be resumed are written down.

    Attributes:
        live: By the id of what the engine was asked.
        pause: How the engine was paused; None: it is not.
    """

    def __init__(
        self,
        send: Callable[[ToEngine], None],
        *,
        status: EngineStatus,
        adapters: AdapterBook,
        weights: WeightsBook,
        calls: EngineCalls,
        sleeping: Sleeping,
        places: Places,
        names: Names,
        observer: Observer,
        records: RecordBook,
        notify: Callable[[], None],
        journals: Journals,
    ) -> None:
        self.live: dict[str, Live] = {}
        self.pause: PauseMode | None = None
        self._send = send
        self._status = status
        self._adapters = adapters
        self._weights = weights
        self._calls = calls
        self._sleeping = sleeping
        self._places = places
        self._names = names
        self._observer = observer
        self._records = records
        self._notify = notify
        self._journals = journals
        self._replay = Replay(
            self.live,
            send=send,
            end=self._take_ended,
            fail=lambda live: self.fail(live, killer()),
        )
        self._patience = Patience(self._give_up)
        self._to_wake: list[Generation] = []

    def add(self, live: Live) -> None:
        """Deliver to a completion whose request was sent."""
        live.completion.weight_version = self._weights.version
        self.live[live.completion.submit.id] = live
        if live.name is not None:
            self._names.add(live.name, live.completion.submit.id)

    def take(self, message: FromEngine) -> None:
        """Take a message; who waits for tokens is woken by :meth:`wake`."""
        match message:
            case Tokens():
                self._status.hear(message)
                self._take_tokens(message)
                return
            case Vector():
                live = self.live.get(message.id)
                if live is not None and message.attempt == live.completion.submit.attempt:
                    live.completion.vector = message.values
                return
            case Ended():
                self._take_ended(message)
            case Flushed() | State() | WeightRows():
                self._calls.answer(message)
            case AdapterReply():
                self._adapters.answer(message)
            case UpkeepReply():
                self._weights.answer(message)
                self._calls.answer(message)
            case Crashed(is_config=True):
                self._give_up()
            case Crashed():
                self._replay.crashed()
                if self.live:
                    self._patience.start()
            case Rested():
                self._patience.stop()
                self._replay.rested()
                self._sleeping.rested(message)
            case Started():
                self._patience.stop()
                self._weights.started()
                self._adapters.started()
                if self.pause is not None:  # the next engine knows of nothing
                    self._send(Pause(call=0, mode="in_place"))
                self._sleeping.started()
                self._replay.started()
            case _:
                pass
        self._status.hear(message)
        self._notify()

    def _take_tokens(self, message: Tokens) -> None:
        drawn: dict[str, TokenLogprobs] = {}
        for logprobs in message.logprobs:
            if not logprobs.is_prompt:
                drawn[logprobs.id] = logprobs
            elif (live := self.live.get(logprobs.id)) is not None:
                live.completion.prompt_logprobs.add(logprobs)
                if live.journal is not None:
                    live.journal.scored(live.completion, logprobs)
        now_s = asyncio.get_running_loop().time()
        begin = 0
        cached = iter(message.cached_tokens)
        columns = zip(message.ids, message.attempts, message.offsets, message.counts, strict=True)
        for request_id, attempt, offset, count in columns:
            live = self.live.get(request_id)
            if live is not None and attempt != live.completion.submit.attempt:
                live = None
            num_cached = next(cached, 0) if offset == 0 else None
            if live is not None and num_cached is not None:
                live.completion.cached_tokens = num_cached
            if live is not None and count:
                token_ids = message.token_ids[begin : begin + count]
                self._take(live, offset, token_ids, drawn.get(request_id), now_s)
            begin += count

    def _take(
        self,
        live: Live,
        offset: int,
        token_ids: list[int],
        logprobs: TokenLogprobs | None,
        now_s: float,
    ) -> None:
        completion = live.completion
        if self._replay.on_trial:
            self._replay.progressed(completion.submit.id)
        if completion.is_deaf:
            return
        if completion.started_s is None:
            completion.started_s = now_s
            self._observer.first_token(now_s - live.sent_s)
        else:
            self._observer.next_tokens(len(token_ids), now_s - live.last_s)
        live.last_s = now_s
        if live.record is not None:
            if len(token_ids) == 1:
                live.record.times_s.append(now_s)
            else:
                live.record.times_s += [now_s] * len(token_ids)
        try:
            deltas = completion.take(offset, token_ids, logprobs)
            if live.journal is not None:
                live.journal.drew(completion, offset, token_ids[: len(deltas)], logprobs)
            self._put(live, deltas)
        except RequestError as error:
            self.fail(live, error)
            return
        except Exception:
            # The boundary of a request: whatever its tokens trip over here, it alone ends.
            log.exception("%s cannot continue", completion.submit.id)
            self.fail(live, defect())
            return
        if completion.matched is not None:
            self._send(
                Cut(
                    id=completion.submit.id,
                    attempt=completion.submit.attempt,
                    keep=len(completion.output_ids),
                    matched=completion.matched,
                )
            )
        if live.generation.is_behind:
            error = RequestError(
                "The client reads too slowly.", remedy="Read faster.", code="slow_client"
            )
            if live.journal is None:
                self.fail(live, error)
            else:
                self._journals.left(live.journal, live.generation, error)

    def _give_up(self) -> None:
        """End everything: the engine does not come back, or not in time."""
        self._patience.stop()
        self.fail_all(BusyError("The engine died.", code="engine_lost", retry_after_s=2.0))

    def _take_ended(self, message: Ended) -> None:
        live = self.live.get(message.id)
        if live is None or message.attempt != live.completion.submit.attempt:
            return
        try:
            delta = live.completion.finish(message)
        except RequestError as error:
            delta = live.completion.fail(error)
        except Exception:
            log.exception("%s cannot be ended properly", message.id)  # the boundary, as above
            delta = live.completion.fail(defect())
        if live.journal is not None:
            live.journal.ended(live.completion, message)
        self._observer.queued(message.queue_s)
        if live.record is not None:
            live.record.story = message.story
        if self._replay.on_trial:
            self._replay.progressed(message.id)
        self._forget(live)
        self._put(live, [delta])

    def fail(self, live: Live, error: RequestError) -> None:
        """End a completion for a reason of our own."""
        self._send(Abort(id=live.completion.submit.id))
        delta = live.completion.fail(error)
        if live.journal is not None:
            live.journal.failed(live.completion, error)
        self._forget(live)
        self._put(live, [delta])

    def fail_all(self, error: BusyError) -> None:
        """End every completion with ``error``; when the server stops, the next one goes on."""
        goes_on = error.code == "server_draining" and self._journals.is_durable
        for live in list(self.live.values()):
            delta = live.completion.fail(error)
            if live.journal is not None and not goes_on:
                live.journal.failed(live.completion, error)
            self._forget(live)
            self._put(live, [delta])
        self.wake()

    def fail_adapter(self, adapter: Adapter, error: RequestError) -> None:
        """End every completion with ``adapter``."""
        for live in [live for live in self.live.values() if live.adapter is adapter]:
            self.fail(live, error)
        self.wake()

    def rename_weights(self, version: str) -> None:
        """Note that what runs is computed with the weights ``version`` from now on."""
        for live in self.live.values():
            live.completion.weight_version = version

    def abort(self, generation: Generation) -> None:
        """End what still runs of a call whose client is gone."""
        gone = error_of(FinishReason(kind="error", message="Aborted.", code="aborted"))
        self.end(generation.completions, gone)

    def end(self, completions: Sequence[Completion], error: RequestError) -> None:
        """End what still runs of ``completions`` for a reason of our own."""
        for completion in completions:
            live = self.live.get(completion.submit.id)
            if live is not None:
                self.fail(live, error)
        self.wake()

    def aborted(self, request_ids: Sequence[str]) -> None:
        """Note that the engine was asked to end completions; what no engine has ends here.

        Should the engine die before it has heard, the next one is not sent them.
        """
        lives = [self.live[request_id] for request_id in request_ids]
        for live in lives:
            live.is_aborted = True
        self._replay.end_whole([live for live in lives if not live.is_sent])
        self.wake()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for what runs, who would not find it in the next process."""
        journals = self._journals
        return any(
            live.journal is None or not journals.is_durable or journals.has_reader(live.journal)
            for live in self.live.values()
        )

    def swap(self, completions: Sequence[Completion], generation: Generation) -> None:
        """Put completions that were made again in the places of the same ones that run."""
        for completion in completions:
            live = self.live.get(completion.submit.id)
            if live is not None:
                completion.submit = live.completion.submit  # with its attempts
                completion.started_s = live.completion.started_s
                live.completion, live.generation = completion, generation
                if live.record is not None:
                    live.record.completion = completion

    def revive(self, lives: Sequence[Live]) -> None:
        """Go on with completions of an earlier process."""
        for live in lives:
            live.is_sent = False
            self.add(live)
        self._replay.end_whole(lives)
        self._replay.started()
        self.wake()

    def _put(self, live: Live, deltas: Sequence[Delta]) -> None:
        """Give ``deltas`` to who waits, once all messages at hand are delivered.

        So the steps that came while this process was busy leave each stream in one write.
        """
        generation = live.generation
        generation.put(deltas)
        if not generation.will_wake:
            generation.will_wake = True
            self._to_wake.append(generation)

    def wake(self) -> None:
        """Wake the generations that something came for since the last time."""
        self._journals.flush()
        waiting, self._to_wake = self._to_wake, []
        for generation in waiting:
            generation.will_wake = False
            generation.wake()

    def _forget(self, live: Live) -> None:
        completion = live.completion
        self._adapters.leave(live.adapter)
        del self.live[completion.submit.id]
        if live.name is not None:
            self._names.remove(live.name, completion.submit.id)
        now = asyncio.get_running_loop().time()
        self._places.end(live.account, len(completion.output_ids), now)
        end = completion.end
        assert end is not None, f"{completion.submit.id} is forgotten before its end"
        started_s = now if completion.started_s is None else completion.started_s
        if live.journal is not None and live.journal.num_open == 0:
            self._journals.over(live.journal)
        self._observer.ended(
            "abort" if end.reason.code == "aborted" else end.reason.kind,
            len(completion.output_ids),
            now - live.sent_s,
            now - started_s,
        )
        if live.record is not None:
            self._records.end(live.record, now)
        self._notify()
