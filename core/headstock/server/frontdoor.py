"""Between the routes and the engine: requests go in as messages, tokens come back as text.

One event loop owns a front door. It knows no HTTP: the offline engine uses it as it is.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from headstock.errors import RequestError
from headstock.requests import FinishReason
from headstock.server.admission import expand
from headstock.server.completion import Completion, Delta
from headstock.server.engine_status import HEARTBEAT_LIMIT_S, EngineStatus
from headstock.server.errors import BusyError, error_of
from headstock.server.generation import Generation
from headstock.server.model_card import ModelCard
from headstock.server.observer import NoObserver, Observer
from headstock.server.prompter import Prompter
from headstock.server.request import GenerateRequest, Prompt
from headstock.text import StopPattern, compile_patterns
from headstock.wire.messages import (
    Abort,
    AbortAll,
    AskState,
    Crashed,
    Cut,
    Ended,
    FlushCache,
    Flushed,
    FromEngine,
    State,
    TokenLogprobs,
    Tokens,
)
from headstock.wire.transport import EngineLink

log = logging.getLogger(__name__)

TOKENIZER_THREADS = 2
_RATE_WINDOW = 64
_RETRY_BOUNDS_S = (1.0, 60.0)


@dataclass(slots=True)
class _Live:
    """A completion that the engine works on."""

    completion: Completion
    generation: Generation
    name: tuple[str, str] | None
    """Whose it is, and what its owner calls it."""
    sent_s: float
    told_s: float
    """When its last tokens came."""


class Frontdoor:
    """Takes typed requests, and gives each completion's text as its tokens come.

    Args:
        link: The way to the engine.
        card: The served model.
        prompter: Makes token ids of prompts.
        max_live: Completions that may be under way, beside those that the engine runs at once;
            past it requests are refused before they are tokenised.
        observer: Hears of each request.
        silence_limit_s: How long the engine may say nothing and still be given requests. Seconds.
    """

    def __init__(
        self,
        link: EngineLink,
        card: ModelCard,
        prompter: Prompter,
        *,
        max_live: int = 2048,
        observer: Observer | None = None,
        silence_limit_s: float = HEARTBEAT_LIMIT_S,
    ) -> None:
        self.card = card
        self.prompter = prompter
        self.status = EngineStatus(silence_limit_s=silence_limit_s)
        self.is_draining = False
        self._link = link
        self._max_live = max_live
        self._observer: Observer = observer or NoObserver()
        self._live: dict[str, _Live] = {}
        self._due: list[Generation] = []
        self._rids: dict[tuple[str, str], list[str]] = {}
        self._calls: dict[int, asyncio.Future[Flushed | State]] = {}
        self._call_numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._ends: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._threads = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenize")

    # What callers ask

    @property
    def max_length(self) -> int:
        """Longest request that can be served, prompt and output. Tokens."""
        started = self.status.started
        if started is None:
            return self.card.max_length
        return min(self.card.max_length, started.limits.max_length)

    @property
    def num_live(self) -> int:
        """Completions that wait or run."""
        return len(self._live)

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken."""
        return not self.is_draining and self.why_not is None

    @property
    def why_not(self) -> str | None:
        """In words, why the engine would not serve a request now; None: it would."""
        if not self.status.is_ready:
            return self.status.why_not
        if self._link.unheard_s > self.status.silence_limit_s:
            return "The engine does not take in what is sent."
        return None

    async def generate(
        self, requests: Sequence[GenerateRequest], *, is_streamed: bool, owner: str = ""
    ) -> Generation:
        """Check all ``requests`` and send them to the engine; none is sent if one is refused.

        Args:
            requests: Of one call.
            is_streamed: Whether each delta is waited for, or the end alone.
            owner: Whose they are: names of requests are in use by one owner only.

        Raises:
            RequestError: One is at fault.
            BusyError: They cannot be served now.
        """
        loop = asyncio.get_running_loop()
        received_s = loop.time()
        num_completions = sum(request.params.n for request in requests)
        self._check_open(requests, num_completions, owner)
        entries: list[tuple[GenerateRequest, Completion]] = []
        for request in requests:
            self._check_text(request)
            prompt_ids = await self.encode(request.prompt)
            patterns: tuple[StopPattern, ...] = ()
            if request.params.stop_regex:
                patterns = await loop.run_in_executor(
                    self._threads, compile_patterns, request.params.stop_regex
                )
            for submit in expand(request, prompt_ids, self.card, self.max_length):
                completion = Completion(submit, len(entries), self.prompter.tokenizer, patterns)
                entries.append((request, completion))
        self._check_open(requests, num_completions, owner)  # things change while a thread tokenises
        generation = Generation(
            [completion for _, completion in entries],
            is_streamed=is_streamed,
            abort=self._abort_generation,
        )
        try:
            for request, completion in entries:
                self._send(request, completion, generation, received_s, owner)
        except RequestError:
            generation.abort()  # those that were sent before the one which cannot be
            raise
        return generation

    async def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of ``prompt``, in a thread where that takes long.

        Raises:
            RequestError: It cannot be turned into tokens.
        """
        if self.prompter.is_quick(prompt):
            return self.prompter.encode(prompt, self.max_length)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, self.prompter.encode, prompt, self.max_length
        )

    def abort(self, rid: str, owner: str | None = "") -> bool:
        """End the requests that ``owner`` named ``rid``, exactly; tell whether there were any.

        They end when the engine says so, with what they have.

        Args:
            rid: The name.
            owner: Whose; None: of all owners.
        """
        if owner is None:
            ids = [i for (_, name), ids in self._rids.items() if name == rid for i in ids]
        else:
            ids = self._rids.get((owner, rid), [])
        for request_id in ids:
            self._link.send(Abort(id=request_id))
        return bool(ids)

    def abort_all(self) -> None:
        """End every request."""
        self._link.send(AbortAll())

    async def flush_cache(self, timeout_s: float) -> Flushed:
        """Forget every cached prefix that no live request uses.

        Raises:
            BusyError: The engine did not answer in ``timeout_s``.
        """
        call = next(self._call_numbers)
        answer = await self._ask(FlushCache(call=call), call, timeout_s)
        assert isinstance(answer, Flushed), f"{answer} answers a flush"
        return answer

    async def ask_state(self, timeout_s: float) -> State:
        """Return the engine's counters as they are now.

        Raises:
            BusyError: The engine did not answer in ``timeout_s``.
        """
        call = next(self._call_numbers)
        answer = await self._ask(AskState(call=call), call, timeout_s)
        assert isinstance(answer, State), f"{answer} answers a question for the state"
        return answer

    async def wait_ready(self) -> None:
        """Wait until the engine is up.

        Raises:
            BusyError: It will not be.
        """
        while not self.is_ready:
            if self.status.phase == "down" or self.is_draining:
                raise self.unavailable()
            await self._wait_change()

    # Life

    async def run(self) -> None:
        """Deliver what the engine says until the link closes."""
        while messages := await self._link.receive():
            for message in messages:
                self._deliver(message)
            self._wake()
        self._fail_all(BusyError("The engine is gone.", code="engine_lost", retry_after_s=1.0))

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests, and wait for those that run; tell whether all ended by themselves.

        Those that still run after ``timeout_s`` end with an error.
        """
        self.is_draining = True
        self._notify()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self._live and (left := deadline - loop.time()) > 0:
            try:
                await asyncio.wait_for(self._wait_change(), left)
            except TimeoutError:
                break
        is_clean = not self._live
        self.end_all("The server is shutting down.")
        return is_clean

    def end_all(self, why: str) -> None:
        """End every request with an error now."""
        if self._live:
            self._link.send(AbortAll())
        self._fail_all(BusyError(why, code="server_draining", retry_after_s=self.retry_after_s()))

    def close(self) -> None:
        """Free the threads, and the processes that render templates."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.prompter.close()

    def unavailable(self) -> BusyError:
        """Return why no request is served now."""
        if self.is_draining:
            return BusyError(
                "The server is shutting down.", code="server_draining", retry_after_s=5.0
            )
        why = self.why_not or "The engine does not answer."
        return BusyError(why, code="engine_unavailable", retry_after_s=2.0)

    def retry_after_s(self) -> float:
        """Return when a refused request should try again, from how fast requests end. Seconds."""
        low, high = _RETRY_BOUNDS_S
        if len(self._ends) < 2:
            return low
        span = asyncio.get_running_loop().time() - self._ends[0]
        return min(high, max(low, len(self._live) / 2 * span / len(self._ends)))

    # Requests in

    def _send(
        self,
        request: GenerateRequest,
        completion: Completion,
        generation: Generation,
        received_s: float,
        owner: str,
    ) -> None:
        submit = completion.submit
        self._link.send(submit)
        name = None if request.rid is None else (owner, request.rid)
        self._live[submit.id] = _Live(completion, generation, name, received_s, received_s)
        if name is not None:
            self._rids.setdefault(name, []).append(submit.id)
        self._observer.accepted(len(submit.prompt_ids))

    def _check_open(
        self, requests: Sequence[GenerateRequest], num_completions: int, owner: str
    ) -> None:
        if not self.is_ready:
            raise self.unavailable()
        started = self.status.started
        places = self._max_live + (started.limits.num_slots if started is not None else 0)
        if len(self._live) + num_completions > places:
            raise BusyError(
                f"The request queue is full: {len(self._live)} of {places} places are taken, and"
                f" this request needs {num_completions}.",
                code="queue_full",
                retry_after_s=self.retry_after_s(),
            )
        names = [request.rid for request in requests if request.rid is not None]
        for name in names:
            if (owner, name) in self._rids or names.count(name) > 1:
                raise RequestError(
                    f"rid {name!r} is in use.", remedy="Give each request its own.", field="rid"
                )

    def _check_text(self, request: GenerateRequest) -> None:
        params = request.params
        if self.prompter.tokenizer is None and (params.stop or params.stop_regex):
            raise RequestError(
                "stop needs text, and this server was started without a tokenizer.",
                remedy="Use stop_token_ids.",
                field="stop" if params.stop else "stop_regex",
            )

    async def _ask(
        self, question: FlushCache | AskState, call: int, timeout_s: float
    ) -> Flushed | State:
        if self.status.phase != "ready":
            raise self.unavailable()
        answer = asyncio.get_running_loop().create_future()
        self._calls[call] = answer
        self._link.send(question)
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError as error:
            raise BusyError(
                f"The engine did not answer in {timeout_s:g} s.",
                code="engine_unavailable",
                retry_after_s=2.0,
            ) from error
        finally:
            del self._calls[call]

    # Messages back

    def _deliver(self, message: FromEngine) -> None:
        match message:
            case Tokens():
                self.status.hear(message)
                self._take_tokens(message)
                return
            case Ended():
                self._take_ended(message)
            case Flushed() | State():
                answer = self._calls.get(message.call)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case Crashed():
                self._fail_all(BusyError("The engine died.", code="engine_lost", retry_after_s=2.0))
            case _:
                pass
        self.status.hear(message)
        self._notify()

    def _take_tokens(self, message: Tokens) -> None:
        drawn: dict[str, TokenLogprobs] = {}
        for logprobs in message.logprobs:
            if not logprobs.is_prompt:
                drawn[logprobs.id] = logprobs
            elif (live := self._live.get(logprobs.id)) is not None:
                live.completion.prompt_logprobs.add(logprobs)
        now_s = asyncio.get_running_loop().time()
        begin = 0
        cached = iter(message.cached_tokens)
        columns = zip(message.ids, message.attempts, message.offsets, message.counts, strict=True)
        for request_id, attempt, offset, count in columns:
            live = self._live.get(request_id)
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
        live: _Live,
        offset: int,
        token_ids: list[int],
        logprobs: TokenLogprobs | None,
        now_s: float,
    ) -> None:
        completion = live.completion
        if completion.is_deaf:
            return
        if completion.started_s is None:
            completion.started_s = now_s
            self._observer.first_token(now_s - live.sent_s)
        else:
            self._observer.next_tokens(len(token_ids), now_s - live.told_s)
        live.told_s = now_s
        try:
            self._put(live, completion.take(offset, token_ids, logprobs))
        except RequestError as error:
            self._fail(live, error)
            return
        except Exception:
            # The boundary of a request: whatever its tokens trip over here, it alone ends.
            log.exception("%s cannot be gone on with", completion.submit.id)
            self._fail(live, _defect())
            return
        if completion.matched is not None:
            self._link.send(
                Cut(
                    id=completion.submit.id,
                    attempt=completion.submit.attempt,
                    keep=len(completion.output_ids),
                    matched=completion.matched,
                )
            )
        if live.generation.is_behind:
            self._fail(
                live,
                RequestError(
                    "The client reads too slowly.", remedy="Read faster.", code="slow_client"
                ),
            )

    def _take_ended(self, message: Ended) -> None:
        live = self._live.get(message.id)
        if live is None or message.attempt != live.completion.submit.attempt:
            return
        try:
            delta = live.completion.finish(message)
        except RequestError as error:
            delta = live.completion.fail(error)
        except Exception:
            log.exception("%s cannot be ended properly", message.id)  # the boundary, as above
            delta = live.completion.fail(_defect())
        self._observer.queued(message.queue_s)
        self._forget(live)
        self._put(live, [delta])

    def _fail(self, live: _Live, error: RequestError) -> None:
        """End a completion for a reason of our own."""
        self._link.send(Abort(id=live.completion.submit.id))
        delta = live.completion.fail(error)
        self._forget(live)
        self._put(live, [delta])

    def _fail_all(self, error: BusyError) -> None:
        for live in list(self._live.values()):
            delta = live.completion.fail(error)
            self._forget(live)
            self._put(live, [delta])
        self._wake()

    def _abort_generation(self, generation: Generation) -> None:
        """End what still runs of a call whose client is gone."""
        gone = error_of(FinishReason(kind="error", message="Aborted.", code="aborted"))
        for completion in generation.completions:
            live = self._live.get(completion.submit.id)
            if live is not None:
                self._fail(live, gone)
        self._wake()

    def _put(self, live: _Live, deltas: Sequence[Delta]) -> None:
        """Give ``deltas`` to who waits, once all messages at hand are delivered.

        So the steps that came while this process was busy leave each stream in one write.
        """
        generation = live.generation
        generation.put(deltas)
        if not generation.is_due:
            generation.is_due = True
            self._due.append(generation)

    def _wake(self) -> None:
        due, self._due = self._due, []
        for generation in due:
            generation.is_due = False
            generation.wake()

    def _forget(self, live: _Live) -> None:
        completion = live.completion
        del self._live[completion.submit.id]
        if live.name is not None:
            ids = self._rids[live.name]
            ids.remove(completion.submit.id)
            if not ids:
                del self._rids[live.name]
        now = asyncio.get_running_loop().time()
        self._ends.append(now)
        end = completion.end
        assert end is not None, f"{completion.submit.id} is forgotten before its end"
        started_s = now if completion.started_s is None else completion.started_s
        self._observer.ended(
            "abort" if end.reason.code == "aborted" else end.reason.kind,
            len(completion.output_ids),
            now - live.sent_s,
            now - started_s,
        )
        self._notify()

    def _notify(self) -> None:
        self._changed.set()

    async def _wait_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _defect() -> RequestError:
    return RequestError(
        "The server failed on this request.", remedy="Try again.", code="internal_error"
    )
