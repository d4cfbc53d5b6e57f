"""A scheduler at a desk, for tests: requests in, plans out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from headstock.requests import SamplingParams, TokenIds
from headstock.scheduler import Drawn, Scheduler
from headstock.wire.messages import Ended, Submit
from headstock.wire.steps import (
    Fault,
    PageGroup,
    RunnerLimits,
    StepPlan,
    StepResult,
)

PAGE = 4


def limits_of(
    *,
    slots: int = 4,
    step_tokens: int = 64,
    length: int = 64,
    pages: int = 100,
    depth: int = 2,
    adapters: int = 0,
) -> RunnerLimits:
    group = PageGroup("full", PAGE, 1, pages + 1)
    limits = RunnerLimits(slots, step_tokens, length, 1000, depth, [group])
    return msgspec.structs.replace(limits, num_adapters=adapters)


@dataclass
class Table:
    """A scheduler at a desk: requests in, plans out, every row draws token 7."""

    limits: RunnerLimits = field(default_factory=limits_of)
    settings: dict[str, object] = field(default_factory=dict)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits, **self.settings)
        self.pending: list[StepPlan] = []
        self.ended: list[Ended] = []

    def submit(self, name: str, prompt: list[int], count: int | None = 8, **fields: object) -> None:
        params = SamplingParams(max_new_tokens=count, temperature=0, sampling_seed=0)
        submit = Submit(id=name, prompt_ids=TokenIds(prompt), params=params, **fields)
        self.scheduler.submit(submit, self.now_s)
        self.ended += self.scheduler.take_ended()

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.plan(self.now_s)
        if plan is not None:
            self.pending.append(plan)
        return plan

    def planned(self) -> StepPlan:
        plan = self.plan()
        assert plan is not None
        return plan

    def settle(
        self, *, token: int = 7, done: bool = False, faults: list[Fault] | None = None
    ) -> Drawn:
        plan = self.pending.pop(0)
        rows = zip(plan.rows.slots, plan.rows.yields, strict=True)
        slots = [slot for slot, is_drawn in rows if is_drawn]
        count = len(slots)
        drafts = self.drafts_for(slots)
        ids, ends = [token] * count, [int(done)] * count
        result = StepResult(
            plan.step, slots, [1] * count, ids, ends, [], faults or [], drafts=drafts
        )
        self.now_s += 1.0
        drawn = self.scheduler.settle(result, self.now_s)
        self.ended += self.scheduler.take_ended()
        self.scheduler.check()
        return drawn

    def drafts_for(self, slots: list[int]) -> list[int]:
        """Return as many drafts as there may be for each of ``slots``."""
        max_drafts = self.scheduler.limits.max_drafts
        return [max_drafts] * len(slots) if max_drafts else []

    def settle_with(self, draw: Callable[[str, int], int]) -> list[tuple[str, int]]:
        """Settle a step in which ``draw`` says what a request draws at an output index."""
        plan = self.pending.pop(0)
        running = {request.slot: request for request in self.scheduler._running}
        rows = zip(plan.rows.slots, plan.rows.yields, strict=True)
        slots = [slot for slot, is_drawn in rows if is_drawn]
        tokens = [draw(running[slot].id, len(running[slot].outputs)) for slot in slots]
        named = [(running[slot].id, token) for slot, token in zip(slots, tokens, strict=True)]
        count = len(slots)
        result = StepResult(plan.step, slots, [1] * count, tokens, [0] * count, [], [])
        self.scheduler.settle(result, self.now_s)
        self.ended += self.scheduler.take_ended()
        self.scheduler.check()
        return named

    def step(self) -> StepPlan:
        plan = self.planned()
        self.settle()
        return plan

    def end_of(self, name: str) -> Ended:
        (ended,) = [ended for ended in self.ended if ended.id == name]
        return ended


def prompt(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))
