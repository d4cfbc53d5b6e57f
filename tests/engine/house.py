"""A front door and an engine without a model, joined by a wire that a test moves by hand."""

from __future__ import annotations

import asyncio
import threading
import time

from client import Client, Record
from null_runner import NullRunner

from headstock.errors import RequestError
from headstock.requests import Grammar, SamplingParams
from headstock.server.frontdoor import Frontdoor
from headstock.server.generation import Generation
from headstock.server.journal import Keeping
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter
from headstock.server.records import Call, RecordBook
from headstock.server.request import GenerateRequest, TokensPrompt
from headstock.text import Tokenizer
from headstock.wire.messages import Crashed, Ended, FromEngine, Started, ToEngine
from tests.server.toy_tokenizer import toy_backend

VOCAB = 128
"""All tokens are characters of ASCII, so that each has a text at once."""
NAMES = ("main", "other")


class Wire:
    """An ``EngineLink`` that keeps what is sent until the engine takes it."""

    unheard_s = 0.0

    def __init__(self) -> None:
        self.to_engine: list[ToEngine] = []
        self.inbox: asyncio.Queue[list[FromEngine]] = asyncio.Queue()

    def send(self, message: ToEngine) -> None:
        self.to_engine.append(message)

    async def receive(self) -> list[FromEngine]:
        return await self.inbox.get()

    def close(self) -> None:
        self.inbox.put_nowait([])


class SlowPrompter(Prompter):
    """Reads prompts in a thread, and those of the main request only once it may."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, None)
        self.may_read = threading.Event()
        self.may_read.set()

    def is_quick(self, prompt) -> bool:
        return self.may_read.is_set()

    def read(self, prompt, max_length):
        assert self.may_read.wait(20)
        return super().read(prompt, max_length)


class Caller:
    """Who asked for a request: reads its stream, and notes what came.

    Attributes:
        refused: Why the request was not taken.
        first: What the engine was asked at first; None: nothing.
    """

    def __init__(self, house: House, name: str, prompt: list[int], **fields) -> None:
        params = {"max_new_tokens": 8, "temperature": 0.0, "sampling_seed": 0}
        params |= fields.pop("params", {})
        keeping = None
        if fields.pop("is_kept", False):
            keeping = Keeping(
                route="r", name=name, owner="", body=b"", call_id=name, created=int(time.time())
            )
        self.house, self.name = house, name
        self.request = GenerateRequest(
            prompt=TokensPrompt(prompt), params=SamplingParams(**params), rid=name, **fields
        )
        self.generation: Generation | None = None
        self.refused: RequestError | None = None
        self.first = None
        self.ends: list = []
        self.text = ""
        self.task = asyncio.create_task(self._run(keeping))

    async def _run(self, keeping: Keeping | None) -> None:
        door = self.house.door
        try:
            generation = await door.generate(
                [self.request], is_streamed=True, keeping=keeping, call=Call(id=self.name)
            )
        except RequestError as error:
            self.refused = error
            return
        if keeping is not None:
            journal = door.journals.peek("", self.name)
            assert journal is not None
            journal.client_knows = True
        self.first = generation.completions[0].submit
        self.generation = generation
        while deltas := await generation.deltas():
            for delta in deltas:
                assert not self.ends, f"{self.name} gets more after its end"
                self.text += delta.text
                if delta.end is not None:
                    self.ends.append(delta.end)

    @property
    def completion(self):
        return None if self.generation is None else self.generation.completions[0]

    def leave(self) -> None:
        """Go, as a route does whose connection is lost."""
        if self.generation is None:
            self.task.cancel()
        else:
            self.generation.abort()


class House:
    """The front door, the wire, and an engine that a test moves step by step."""

    def __init__(self, *, is_kept: bool = False, **runner) -> None:
        self.runner_options = {"vocab_size": VOCAB, "num_adapters": 1, "num_slots": 2} | runner
        self.is_kept = is_kept
        self.holds_replies = False
        self.held: list[FromEngine] = []
        self.callers: dict[str, Caller] = {}
        self.submitted: set[str] = set()

    async def open(self, *, reads_at_once: bool = True) -> None:
        self.reads_at_once = reads_at_once
        self.wire = Wire()
        tokenizer = Tokenizer(toy_backend(), special={})
        self.prompter = SlowPrompter(tokenizer)
        card = ModelCard(
            name="m", model_path="", max_length=64, vocab_size=tokenizer.vocab_size, eos_ids=[]
        )
        self.door = Frontdoor(
            self.wire, card, self.prompter, max_live=64, adapters={"a": "/a"}, resume_s=0.0,
            records=RecordBook(8),
        )  # fmt: skip
        self.running = asyncio.create_task(self.door.run())
        await self.start_engine()

    async def close(self) -> None:
        self.prompter.may_read.set()
        self.wire.close()
        await self.running
        self.door.close()

    # Requests

    async def ask(self, name: str, prompt: list[int], **fields) -> Caller:
        caller = Caller(self, name, prompt, is_kept=self.is_kept, **fields)
        self.callers[name] = caller
        await self.quiet()
        return caller

    async def ask_other(self, **fields) -> Caller:
        """Ask for what runs beside, and must not be harmed."""
        return await self.ask("other", [9, 8, 7], params={"max_new_tokens": 24}, **fields)

    # The engine

    @property
    def has_engine(self) -> bool:
        return self.client is not None

    async def start_engine(self) -> None:
        self.client = Client(NullRunner(**self.runner_options), reads_at_once=self.reads_at_once)
        self.wire.to_engine.clear()
        await self.tell([Started(limits=self.client.runner.limits), self.client.engine.state()])

    async def kill_engine(self) -> None:
        """Lose the engine, what it was sent, and what it said last."""
        self.client = None
        self.wire.to_engine.clear()
        self.held.clear()
        self.holds_replies = False
        await self.tell([Crashed(problem="It was killed.", remedy="", is_config=False)])

    async def tell(self, messages: list[FromEngine]) -> None:
        self.wire.inbox.put_nowait(messages)
        await self.quiet()

    async def turn(self, count: int = 1, *, steps: bool = True) -> None:
        """Let the engine go round: take messages, and compute a step."""
        for _ in range(count):
            assert self.client is not None
            engine, messages = self.client.engine, list(self.wire.to_engine)
            self.wire.to_engine.clear()
            replies = engine.receive(messages)
            if steps:
                self.client.compiler.work()
            if engine.is_preparing:
                replies += engine.take_prepared()
            if steps and engine.has_work:
                replies += engine.step()
            engine.scheduler.check()
            if self.holds_replies:
                self.held += replies
            elif replies:
                self.wire.inbox.put_nowait(replies)
            await self.quiet()

    async def finish(self) -> None:
        """Let go of all that is held back, and compute until nothing is left."""
        self.prompter.may_read.set()
        self.reads_at_once = True
        if self.client is None:
            await self.start_engine()
        self.client.shelf.is_quick = True
        self.holds_replies = False
        held, self.held = self.held, []
        if held:
            await self.tell(held)
        for caller in self.callers.values():
            while caller.generation is None and not caller.task.done():
                await asyncio.sleep(0.001)
        if self.door._delivery.pause is not None:
            unpausing = asyncio.create_task(self.door.unpause(20))
            await self.quiet()
            await self.turn()
            await unpausing
        for _ in range(500):
            engine = self.client.engine
            if not (engine.has_work or engine.is_preparing or self.wire.to_engine):
                break
            await self.turn()
        await asyncio.wait([caller.task for caller in self.callers.values()], timeout=20)

    async def pause(self, mode) -> None:
        pausing = asyncio.create_task(self.door.pause(mode, 20))
        await self.quiet()
        await self.turn(steps=False)
        await pausing

    async def retract(self) -> None:
        """Have every request wait again."""
        await self.pause("retract")
        while self.client.engine.has_work:
            await self.turn()
        unpausing = asyncio.create_task(self.door.unpause(20))
        await self.quiet()
        await self.turn(steps=False)
        await unpausing

    @staticmethod
    async def quiet() -> None:
        """Let every task of this event loop do what it can do now."""
        for _ in range(12):
            await asyncio.sleep(0)

    # What came of it

    def check_caller(self, caller: Caller, outcome: str) -> None:
        """Assert that a request ended once, as ``outcome`` says."""
        if outcome in ("refused", "forgotten"):
            assert caller.generation is None
            assert caller.name not in self.heard_of
            assert (caller.refused is not None) == (outcome == "refused")
            if caller.refused is not None:
                assert caller.refused.code == "server_draining"
            return
        completion = caller.completion
        assert completion is not None, caller.refused
        assert completion.end is not None, f"{caller.name} has no end"
        assert len(caller.ends) <= 1
        reason = completion.end.reason
        reference = Client(NullRunner(**self.runner_options))
        expected = reference.expected(Record(caller.first, []))
        drawn = completion.output_ids
        assert drawn == expected[: len(drawn)], "other tokens than undisturbed"
        if outcome == "whole":
            assert reason.kind in ("length", "stop"), reason
            if completion.matched is None:
                assert drawn == expected, f"{caller.name} lost tokens"
        elif outcome == "ended":
            assert reason.kind == "abort" or reason.code == "aborted", reason
        else:
            codes = {"drained": "server_draining", "killer": "computation_failed"}
            assert reason.code == codes[outcome], reason

    @property
    def heard_of(self) -> set[str]:
        return {name for name, caller in self.callers.items() if caller.first is not None}

    def check_empty(self) -> None:
        """Assert that no page, place, name or message is left."""
        engine, door = self.client.engine, self.door
        engine.scheduler.check()
        state = engine.state()
        assert state.running == state.waiting == 0
        assert state.free_pages + state.cached_pages == state.total_pages, "pages leaked"
        assert not engine._grammars._followed, "a matcher is left"
        assert door.num_live == 0
        assert door._places.num_live == 0, "a place is left"
        assert all(adapter.num_live == 0 for adapter in door.adapters.all)
        for name in NAMES:
            assert not door._names.ids(name, None), "a name is left"
        assert not self.held or all(not isinstance(m, Ended) for m in self.held)


GRAMMAR = Grammar("regex", "2,0,6", "regex")
