"""Between the routes and the engine: requests are checked and go in as messages.

One event loop owns a front door. It knows no HTTP: the offline engine uses it as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from headstock.config.schema import reserved_places
from headstock.errors import RequestError
from headstock.server.adapters import Adapter, AdapterBook
from headstock.server.admission import check_task, check_text, expand
from headstock.server.completion import Completion
from headstock.server.delivery import Delivery
from headstock.server.engine_calls import ASLEEP, HEARTBEAT_LIMIT_S, EngineCalls, EngineStatus
from headstock.server.errors import BusyError
from headstock.server.generation import Generation
from headstock.server.intake import Intake
from headstock.server.journal import Journal, Keeping
from headstock.server.journals import Journals
from headstock.server.model_card import ModelCard
from headstock.server.observer import NoObserver, Observer
from headstock.server.payers import NAMELESS, Account, Payer
from headstock.server.places import Names, Places
from headstock.server.prompter import Prompter, Reading
from headstock.server.records import NO_CALL, Call, RecordBook
from headstock.server.replay import Live
from headstock.server.request import GenerateRequest, Prompt
from headstock.server.resumption import Resumption
from headstock.server.sleep import EngineProcess, Sleeping
from headstock.server.store import MemoryStore, Store
from headstock.server.weights import WeightsBook
from headstock.wire.messages import (
    Abort,
    AbortAll,
    Flushed,
    PauseMode,
    State,
)
from headstock.wire.transport import EngineLink

log = logging.getLogger(__name__)

RESUME_S = 60.0
WAKE_RETRY_S = 30.0
"""When callers of a server that sleeps may try again. Seconds."""


class Entry(NamedTuple):
    """A completion before it is sent."""

    request: GenerateRequest
    completion: Completion
    adapter: Adapter | None


class Frontdoor:
    """Takes typed requests, and gives each completion's text as its tokens come.

    Args:
        link: The way to the engine.
        card: The served model.
        prompter: Makes token ids of prompts.
        max_live: Completions that may be under way, beside those that the engine runs at once;
            past it requests are refused before they are tokenised.
        adapters: Name to folder of the LoRA adapters that are served from the start.
        observer: Hears of each request.
        records: Where what became of requests is kept; nowhere when not given.
        silence_limit_s: How long the engine may say nothing and still be given requests. Seconds.
        store: Where what callers want to be kept is; None: in memory.
        is_durable: Whether the store outlives this process.
        resume_s: How long a call that can be resumed is kept for its client. Seconds.
        process: The engine's, where it can be ended and started again.
    """

    def __init__(
        self,
        link: EngineLink,
        card: ModelCard,
        prompter: Prompter,
        *,
        max_live: int = 2048,
        adapters: Mapping[str, str] | None = None,
        observer: Observer | None = None,
        records: RecordBook | None = None,
        silence_limit_s: float = HEARTBEAT_LIMIT_S,
        store: Store | None = None,
        is_durable: bool = False,
        resume_s: float = RESUME_S,
        process: EngineProcess | None = None,
    ) -> None:
        self.card = card
        self.prompter = prompter
        self.store: Store = MemoryStore() if store is None else store
        self.journals = Journals(
            self.store,
            prompter.tokenizer,
            self._end,
            resume_s=resume_s,
            is_durable=is_durable,
        )
        self.adapters = AdapterBook(card, adapters or {}, link.send)
        self.weights = WeightsBook(card.model_path, link.send, self._rename_weights)
        self.status = EngineStatus(silence_limit_s=silence_limit_s)
        self.is_draining = False
        self._link = link
        self._places = Places(max_live, reserved_places(max_live))
        self._observer: Observer = observer or NoObserver()
        self.records = records or RecordBook(0)
        self._names = Names()
        self.calls = EngineCalls(link.send)
        self._changed = asyncio.Event()
        self.sleeping = Sleeping(self.calls, link.send, self._changed.set, process)
        self._delivery = self._make_delivery()
        self._intake = Intake(
            link.send,
            self._delivery,
            adapters=self.adapters,
            places=self._places,
            names=self._names,
            observer=self._observer,
            records=self.records,
        )
        self.resumption = Resumption(
            self.journals,
            self._delivery,
            self._intake,
            adapters=self.adapters,
            places=self._places,
            card=card,
            unavailable=self.unavailable,
        )
        self._reading = Reading(prompter, lambda: self.max_length)

    def _make_delivery(self) -> Delivery:
        return Delivery(
            self._link.send,
            status=self.status,
            adapters=self.adapters,
            weights=self.weights,
            calls=self.calls,
            sleeping=self.sleeping,
            places=self._places,
            names=self._names,
            observer=self._observer,
            records=self.records,
            notify=self._changed.set,
            journals=self.journals,
        )

    # What callers ask

    @property
    def max_length(self) -> int:
        """Longest request that can be served, prompt and output. Tokens."""
        started = self.status.started
        if started is None:
            return self.card.max_length
        limits = started.limits
        longest = min(self.card.max_length, limits.max_length)
        return longest if limits.is_causal else min(longest, limits.max_step_tokens)

    @property
    def served_card(self) -> ModelCard:
        """The model's card, with the longest request that can be served."""
        return msgspec.structs.replace(self.card, max_length=self.max_length)

    @property
    def type_stride(self) -> int:
        """What tells a pair's second text from the first: added to its ids; 0: nothing is."""
        started, vocab_size = self.status.started, self.card.vocab_size
        return vocab_size if started and started.limits.vocab_size > vocab_size else 0

    @property
    def num_live(self) -> int:
        """Completions that wait or run."""
        return len(self._delivery.live)

    def num_spare(self, num_own: int) -> int:
        """Return how many completions may be under way whose callers are in no hurry.

        They leave half of the engine's places that others do not use.

        Args:
            num_own: How many of these are under way.
        """
        started = self.status.started
        if started is None or not self.is_ready or self._delivery.pause is not None:
            return 0
        num_others = max(0, self.num_live - num_own)  # some of its own are not under way yet
        return (started.limits.num_slots - num_others + 1) // 2

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken."""
        return not self.is_draining and self.why_not is None

    @property
    def why_not(self) -> str | None:
        """In words, why the engine would not serve a request now; None: it would."""
        if not self.status.is_ready:
            return self.status.why_not
        if self.sleeping.is_asleep:
            return ASLEEP
        if self._link.unheard_s > self.status.silence_limit_s:
            return "The engine does not take in what is sent."
        return None

    async def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        is_streamed: bool,
        owner: str = "",
        payer: Payer = NAMELESS,
        keeping: Keeping | None = None,
        call: Call = NO_CALL,
    ) -> Generation:
        """Check all ``requests`` and send them to the engine; none is sent if one is refused.

        Args:
            requests: Of one call.
            is_streamed: Whether each delta is waited for, or the end alone.
            owner: Whose they are: names of requests are in use by one owner only.
            payer: Whose account they count against.
            keeping: What is to be written down of the call, so that it can be resumed; None:
                nothing.
            call: What they belong to, for its record.

        Raises:
            RequestError: One is at fault.
            BusyError: They cannot be served now.
        """
        received_s = asyncio.get_running_loop().time()
        self._check_open(requests, owner, payer)
        entries: list[Entry] = []
        for request in requests:
            entries += await self._prepare(request, len(entries), payer, self.records.wants(call))
        num_tokens = sum(len(entry.completion.submit.prompt_ids) for entry in entries)
        # Things change while a thread tokenises.
        account = self._check_open(requests, owner, payer, num_tokens)
        completions = [entry.completion for entry in entries]
        journal = self._begin_journal(keeping, entries, owner, payer)
        if journal is None:
            abort = self._delivery.abort
            generation = Generation(completions, is_streamed=is_streamed, abort=abort)
        else:
            generation = self.resumption.read(completions, journal, is_streamed=is_streamed)
        record = self.records.begin(call, self.card.name)
        try:
            for request, completion, adapter in entries:
                name = None if request.rid is None else (owner, request.rid)
                live = Live(
                    completion, generation, account, name, received_s, received_s, adapter,
                    journal=journal,
                )  # fmt: skip
                self._intake.send(live, record)
        except RequestError as error:
            self._delivery.end(completions, error)  # those before the one that cannot be sent
            if journal is not None:
                self.journals.forget(journal)
            raise
        return generation

    def _begin_journal(
        self, keeping: Keeping | None, entries: Sequence[Entry], owner: str, payer: Payer
    ) -> Journal | None:
        """Return where a call is written down; None: nowhere."""
        if keeping is None:
            return None
        return self.journals.begin(
            keeping,
            [entry.completion for entry in entries],
            model=self.resumption.model,
            weight_version=self.weights.version,
            payer=payer.id,
            tenant=owner,
            names=[entry.request.rid for entry in entries],
            adapters=[entry.request.adapter for entry in entries],
        )

    async def _prepare(
        self, request: GenerateRequest, index: int, payer: Payer, wants_story: bool
    ) -> list[Entry]:
        """Check a request and return its completions, the first of which has ``index``."""
        check_task(request, self.card)
        adapter = self.adapters.find(request.adapter)
        tokenizer = self.prompter.tokenizer
        check_text(request, has_tokenizer=tokenizer is not None)
        prompt_ids, media = await self._reading.read(request.prompt)
        patterns = await self._reading.compile(request.params.stop_regex)
        adapter_id = "" if adapter is None else adapter.id
        submits = expand(
            request, prompt_ids, self.card, self.max_length, adapter_id, tokenizer, media, payer
        )
        if wants_story:
            submits = [msgspec.structs.replace(submit, wants_story=True) for submit in submits]
        return [
            Entry(request, Completion(submit, number, tokenizer, patterns), adapter)
            for number, submit in enumerate(submits, start=index)
        ]

    async def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of ``prompt``, in a thread where that takes long.

        Raises:
            RequestError: It cannot be turned into tokens.
        """
        return (await self._reading.read(prompt))[0]

    def abort(self, rid: str, owner: str | None = "") -> bool:
        """End the requests that ``owner`` named ``rid``, exactly; tell whether there were any.

        They end when the engine says so, with what they have.

        Args:
            rid: The name.
            owner: Whose; None: of all owners.
        """
        ids = self._names.ids(rid, owner)
        for request_id in ids:
            self._link.send(Abort(id=request_id))
        self._delivery.aborted(ids)
        return bool(ids)

    def abort_all(self) -> None:
        """End every request."""
        self._link.send(AbortAll())
        self._delivery.aborted(list(self._delivery.live))

    async def flush_cache(self, timeout_s: float) -> Flushed:
        """Forget every cached prefix that no live request uses.

        Raises:
            BusyError: The engine did not answer in ``timeout_s``.
        """
        self.check_up()
        return await self.calls.flush(timeout_s)

    async def pause(self, mode: PauseMode, timeout_s: float) -> State:
        """Stop the steps until :meth:`unpause`; requests are still taken, and wait.

        An engine that is started meanwhile is paused too.

        Args:
            mode: What becomes of the requests that are there; see
                :class:`~headstock.wire.messages.Pause`.
            timeout_s: How long the engine may take to answer.

        Raises:
            BusyError: The engine did not answer.
        """
        self.check_up()
        self._delivery.pause = mode
        pausing = self.calls.pause(mode, timeout_s)
        if mode == "abort":
            self._delivery.aborted(list(self._delivery.live))
        return await pausing

    async def unpause(self, timeout_s: float) -> State:
        """Go on after :meth:`pause`.

        Raises:
            RequestError: The engine sleeps.
            BusyError: It did not answer.
        """
        self.sleeping.check_awake()
        self._delivery.pause = None
        self.check_up()
        return await self.calls.resume(timeout_s)

    async def unload_adapter(self, name: str, timeout_s: float) -> None:
        """Forget a LoRA adapter; requests with it that still run after so long end with an error.

        Raises:
            RequestError: There is none of that name.
            BusyError: The engine did not answer.
        """

        def end(adapter: Adapter) -> None:
            self._delivery.fail_adapter(adapter, self.adapters.gone(adapter))

        await self.adapters.unload(name, timeout_s, end)

    async def ask_state(self, timeout_s: float) -> State:
        """Return the engine's counters as they are now.

        Raises:
            BusyError: The engine did not answer in ``timeout_s``.
        """
        self.check_up()
        return await self.calls.ask_state(timeout_s)

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
                self._delivery.take(message)
            self._delivery.wake()
        self._delivery.fail_all(
            BusyError("The engine is gone.", code="engine_lost", retry_after_s=1.0)
        )

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests, and wait for those that run; tell whether all ended by themselves.

        Those that still run after ``timeout_s`` end with an error.
        """
        self.is_draining = True
        self._changed.set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self._delivery.is_awaited and (left := deadline - loop.time()) > 0:
            try:
                await asyncio.wait_for(self._wait_change(), left)
            except TimeoutError:
                break
        is_clean = not self._delivery.live
        self.end_all("The server is shutting down.")
        return is_clean

    def end_all(self, why: str) -> None:
        """End every request with an error now."""
        if self._delivery.live:
            self._link.send(AbortAll())
        retry_after_s = self._places.retry_after_s(asyncio.get_running_loop().time())
        self._delivery.fail_all(BusyError(why, code="server_draining", retry_after_s=retry_after_s))

    def close(self) -> None:
        """Free the threads, and the processes that render templates."""
        self._reading.close()

    def unavailable(self) -> BusyError:
        """Return why no request is served now."""
        if self.is_draining:
            return BusyError(
                "The server is shutting down.", code="server_draining", retry_after_s=5.0
            )
        if self.sleeping.is_resting or (self.sleeping.is_asleep and self.status.is_ready):
            return BusyError(ASLEEP, code="asleep", retry_after_s=WAKE_RETRY_S)
        why = self.why_not or "The engine does not answer."
        return BusyError(why, code="engine_unavailable", retry_after_s=2.0)

    def _end(self, completions: Sequence[Completion], error: RequestError) -> None:
        self._delivery.end(completions, error)

    def _check_open(
        self,
        requests: Sequence[GenerateRequest],
        owner: str,
        payer: Payer,
        num_tokens: int | None = None,
    ) -> Account:
        """Refuse a call that cannot be served now; before its prompts are tokens, and after."""
        if not self.is_ready:
            raise self.unavailable()
        started = self.status.started
        num_slots = 0 if started is None else started.limits.num_slots
        return self._intake.check(requests, owner, payer, num_slots, num_tokens)

    def check_up(self) -> None:
        """Refuse what an engine has to answer while none is there.

        Raises:
            BusyError: There is no engine.
        """
        if self.status.phase != "ready":
            raise self.unavailable()

    def _rename_weights(self, version: str) -> None:
        self._delivery.rename_weights(version)

    async def _wait_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
