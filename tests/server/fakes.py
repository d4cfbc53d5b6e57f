"""An engine without a model: it answers with the prompt's own ids, over and over."""

import asyncio
import contextlib
import math
from dataclasses import dataclass, field

import numpy as np

from headstock.requests import FinishReason
from headstock.wire.messages import (
    Abort,
    AbortAll,
    AdapterReply,
    AskState,
    Cut,
    Ended,
    FlushCache,
    Flushed,
    GroupPages,
    LoadAdapter,
    LoadWeights,
    Pause,
    ReadWeight,
    Rested,
    Resume,
    Sleep,
    Started,
    StartProfile,
    State,
    StopProfile,
    Submit,
    Tokens,
    UnloadAdapter,
    UpkeepReply,
    Vector,
    Wake,
    WeightRows,
)
from headstock.wire.requests import Story, TokenLogprobs
from headstock.wire.steps import PageGroup, RunnerLimits

STORY = Story({"slots": 0.002}, 1, 2, [1], [5], [0.001], 4)
"""What every request that asks for it is told."""


@dataclass
class Running:
    submit: Submit
    made: int = 0
    end: FinishReason | None = None


@dataclass
class EchoCore:
    """The engine without a way to reach it: messages in, messages out."""

    max_waiting: int = 10_000
    limits: RunnerLimits = field(
        default_factory=lambda: RunnerLimits(
            8, 256, 512, 1000, 1, [PageGroup("full", 16, 1024, 100)]
        )
    )
    tokens_per_step: int = 1
    running: dict[str, Running] = field(default_factory=dict)
    steps: int = 0
    script: list[int] | None = None  # what is answered instead of the prompt's own ids
    hides_drawn: bool = False  # the drawn token is not among the likeliest
    received: int = 0
    adapters: dict[str, str] = field(default_factory=dict)
    vector_size: int = 8
    groups: list[GroupPages] = field(default_factory=list)
    is_paused: bool = False
    loading: LoadWeights | None = None
    is_asleep: bool = False
    cannot_sleep: bool = False
    cannot_start: bool = False

    def take(self, message):
        """Take a message and return what is answered at once."""
        self.received += 1
        match message:
            case Submit() if len(self.running) >= self.max_waiting:
                reason = FinishReason(
                    kind="error", code="queue_full", message="The queue is full.", retry_after_s=3
                )
                return [Ended(id=message.id, attempt=0, reason=reason, num_outputs=0)]
            case Submit():
                self.running[message.id] = Running(message, made=len(message.output_ids))
            case Abort(id=request_id) if request_id in self.running:
                self.running[request_id].end = FinishReason(kind="abort", message="Aborted.")
            case AbortAll():
                for row in self.running.values():
                    row.end = FinishReason(kind="abort", message="Aborted.")
            case Cut(id=request_id, matched=matched) if request_id in self.running:
                row = self.running[request_id]
                row.end = FinishReason(kind="stop", matched=matched)
                row.made = message.keep
            case FlushCache(call=call):
                return [Flushed(call=call, freed_pages=7, was_idle=not self.running)]
            case AskState(call=call):
                return [self.state(call)]
            case Pause(call=call, mode=mode):
                self.is_paused = True
                if mode == "abort":
                    self.take(AbortAll())
                return [self.state(call)]
            case Resume(call=call):
                self.is_paused = False
                return [self.state(call)]
            case LoadAdapter(call=call, path=path) if "bad" in path:
                return [AdapterReply(call=call, problem="It is bad.", remedy="Take a good one.")]
            case LoadAdapter(call=call, adapter=adapter, path=path):
                self.adapters[adapter] = path
                return [AdapterReply(call=call)]
            case UnloadAdapter(call=call, adapter=adapter):
                del self.adapters[adapter]
                return [AdapterReply(call=call)]
            case LoadWeights(call=call, path=path) if "bad" in path:
                return [UpkeepReply(call=call, problem="It is bad.", remedy="Take a good one.")]
            case LoadWeights(path=path) if "slow" in path:
                self.loading = message
            case LoadWeights(call=call):
                return [UpkeepReply(call=call, count=len(self.running))]
            case StartProfile(call=call, folder="/full"):
                return [UpkeepReply(call=call, problem="The disk is full.", remedy="Make room.")]
            case StartProfile(call=call, folder=folder):
                return [UpkeepReply(call=call, path=f"{folder}/trace")]
            case Sleep(call=call) if self.cannot_sleep:
                return [UpkeepReply(call=call, problem="It keeps its memory.", remedy="End it.")]
            case Sleep(call=call):
                self.is_asleep = True
                return [UpkeepReply(call=call, count=4096)]
            case Wake(call=call):
                self.is_asleep = False
                return [UpkeepReply(call=call)]
            case ReadWeight(call=call, name="norm.weight", num_rows=count):
                values = np.arange(6, dtype="<f4").reshape(3, 2)[:count]
                return [WeightRows(call=call, shape=list(values.shape), values=values.tobytes())]
            case ReadWeight(call=call):
                return [WeightRows(call=call, problem="There is none.", remedy="Take another.")]
            case StopProfile(call=call):
                return [UpkeepReply(call=call, path="/trace", count=3)]
            case _:
                pass
        return []

    def state(self, call=0):
        return State(
            call=call, received=self.received, steps=self.steps, running=len(self.running),
            waiting=0, is_paused=self.is_paused,
            free_pages=99 - len(self.running), cached_pages=0, total_pages=99,
            totals={"prompt_tokens": 1.0}, groups=self.groups,
        )  # fmt: skip

    def step(self):
        """Draw for every row and return what came of it."""
        self.steps += 1
        rows = [row for row in list(self.running.values()) if row.end is None]
        if self.is_paused:
            rows = []
        drawn = []
        logprobs = []
        for row in rows:
            submit = row.submit
            if row.made == 0 and submit.prompt_logprobs_from is not None:
                scored = submit.prompt_ids[max(1, submit.prompt_logprobs_from) :]
                logprobs.append(self.logprobs(submit, scored, is_prompt=True))
            ids = []
            for _ in range(self.tokens_per_step):
                if row.end is not None:
                    break
                if row.made >= submit.params.max_new_tokens:
                    row.end = FinishReason(kind="length")
                    break
                source = self.script or submit.prompt_ids
                token = source[row.made % len(source)]
                ids.append(token)
                row.made += 1
                if token in submit.stop_ids and row.made > submit.params.min_new_tokens:
                    row.end = FinishReason(kind="stop", matched=token)
                elif row.made >= submit.params.max_new_tokens:
                    row.end = FinishReason(kind="length")
            if ids:
                drawn.append((submit.id, row.made - len(ids), ids))
                if submit.logprobs >= 0:
                    logprobs.append(self.logprobs(submit, ids, is_prompt=False))
        batch = []
        if drawn or logprobs:
            batch.append(
                Tokens(
                    ids=[item[0] for item in drawn],
                    attempts=[self.running[item[0]].submit.attempt for item in drawn],
                    offsets=[item[1] for item in drawn],
                    counts=[len(item[2]) for item in drawn],
                    token_ids=[token for item in drawn for token in item[2]],
                    logprobs=logprobs,
                    cached_tokens=[3 for item in drawn if item[1] == 0],
                )
            )
        for request_id, row in list(self.running.items()):
            if row.end is not None:
                if row.submit.pool and row.end.kind != "abort":
                    ids = row.submit.prompt_ids
                    each = [ids] if row.submit.pool == "pool" else [[token] for token in ids]
                    values = b"".join(map(self.vector, each))
                    batch.append(Vector(id=request_id, attempt=row.submit.attempt, values=values))
                del self.running[request_id]
                batch.append(
                    Ended(
                        id=request_id, attempt=row.submit.attempt, reason=row.end,
                        num_outputs=row.made, cached_tokens=3, queue_s=0.002,
                        story=STORY if row.submit.wants_story else None,
                    )
                )  # fmt: skip
        if self.steps % 10 == 0:
            batch.append(self.state())
        return batch

    def vector(self, ids):
        """Return what a pooled request yields: how often ids of each rest modulo ``size`` occur."""
        counts = np.zeros(self.vector_size, "<f4")
        np.add.at(counts, np.array(ids) % self.vector_size, 1)
        return counts.tobytes()

    def logprobs(self, submit, ids, *, is_prompt):
        k = max(submit.logprobs, 0)
        return TokenLogprobs(
            id=submit.id,
            is_prompt=is_prompt,
            chosen=[-math.log(2 + token) for token in ids],
            top_ids=[
                list(range(k)) if self.hides_drawn else [token, *range(k - 1)][:k] for token in ids
            ],
            top=[[-0.5 - i for i in range(k)] for _ in ids],
            asked=[[-9.0 for _ in submit.asked_ids] for _ in ids],
        )


@dataclass
class EchoEngine(EchoCore):
    """An ``EngineLink`` and the engine behind it, in one event loop; a step takes ``step_s``."""

    step_s: float = 0.0
    seen: list = field(default_factory=list)
    unheard_s: float = 0.0

    def __post_init__(self):
        self.inbox = asyncio.Queue()
        self.inbox.put_nowait([Started(limits=self.limits), self.state()])
        self.wake = asyncio.Event()
        self.task = asyncio.create_task(self.run())

    def send(self, message):
        self.seen.append(message)
        if answers := self.take(message):
            self.inbox.put_nowait(answers)
        self.wake.set()

    async def receive(self):
        return await self.inbox.get()

    def rest(self):
        """Forget everything, as a process that ends."""
        self.running.clear()
        self.is_asleep = self.is_paused = False
        self.inbox.put_nowait([Rested()])

    def rouse(self):
        if self.cannot_start:
            self.inbox.put_nowait([Rested(problem="There is no room.", remedy="Make some.")])
        else:
            self.inbox.put_nowait([Started(limits=self.limits), self.state()])

    def close(self):
        self.task.cancel()
        self.inbox.put_nowait([])

    async def run(self):
        while True:
            if not self.running:
                self.wake.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), 1.0)
                self.inbox.put_nowait([self.state()])
                continue
            await asyncio.sleep(self.step_s)
            if batch := self.step():
                self.inbox.put_nowait(batch)
