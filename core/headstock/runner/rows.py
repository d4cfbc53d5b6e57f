"""Who takes part in a step and what that asks of it. Host only, kept while it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from headstock.ops.steps import FIRST_DRAFT, LAST_ID
from headstock.runner.slots import has_penalties, is_greedy
from headstock.wire.steps import (
    DRAW,
    FROM_DEVICE,
    FROM_HOST,
    POOLED,
    Admit,
    Rows,
    StepPlan,
    TreeNodes,
)

# Draw kinds: what drawing from a step's logits has to do.
RANDOM = "random"
"""Some row is not greedy."""
PENALTIES = "penalties"
BIAS = "bias"
FLOOR = "floor"
"""Some row must not stop before it has ``min_outputs``."""
LOGPROBS = "logprobs"
MASKS = "masks"
"""Some row may draw only ids that its mask allows."""
DRAFTS = "drafts"
"""Some row has tokens drafted for its next step."""

GREEDY: frozenset[str] = frozenset()
"""The draw kinds of a step that only needs to know which logit is the highest."""

NO_TREE = TreeNodes()


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """What the host remembers of a slot's request.

    Attributes:
        draw_kinds: What drawing for it takes.
        logprobs: -1: none; k: the drawn token's and the top k's.
        asked_ids: Ids whose logprobs it wants.
        has_adapter: Whether it has a LoRA adapter.
    """

    draw_kinds: frozenset[str]
    logprobs: int
    asked_ids: tuple[int, ...]
    has_adapter: bool = False

    @classmethod
    def of(cls, admit: Admit) -> SlotFacts:
        """Read them off an admission."""
        kinds = _kinds(
            not is_greedy(admit),
            has_penalties(admit),
            bool(admit.bias_ids),
            admit.min_outputs > admit.num_outputs,
            admit.logprobs >= 0 or bool(admit.asked_ids),
            admit.drafts,
        )
        return cls(kinds, admit.logprobs, tuple(admit.asked_ids), admit.adapter > 0)


@cache
def _kinds(*is_asked: bool) -> frozenset[str]:
    """Return the draw kinds that are asked for; equal ones are one set."""
    names = (RANDOM, PENALTIES, BIAS, FLOOR, LOGPROBS, DRAFTS)
    return frozenset(name for name, asked in zip(names, is_asked, strict=True) if asked)


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """Prompt positions whose next tokens' logprobs are wanted.

    Attributes:
        slot: Whose.
        begin: Place of the first such position among the step's tokens.
        target_ids: The tokens that follow those positions.
        facts: Of the slot.
    """

    slot: int
    begin: int
    target_ids: list[int]
    facts: SlotFacts


@dataclass(frozen=True, slots=True)
class RowSet:
    """The rows of a step.

    Attributes:
        slots: Whose row it is. [rows]
        draw_slots: Likewise, the null slot for rows that draw nothing. [rows]
        queries: Tokens of each row. [rows]
        num_draws: Positions that each row draws from; 1 for rows that draw nothing. [rows]
        host_ids: Token ids, or negative codes for those that the device has. [tokens]
        tree: Prefixes that rows share.
        drawn: Which rows draw. Indexes.
        drawn_slots: Whose they are.
        pooled: Which rows are pooled, by what they yield. Indexes.
        max_draws: J: the most positions that a row draws from; 0: no row draws.
        draw_kinds: What drawing must do.
        wants_logprobs: Drawn rows that do: (row, slot, facts).
        scored: Prompt positions to score.
        is_uniform: Whether every row has equally many tokens, and draws from all of them or none.
        is_decode: Whether every row's tokens are on the device.
        has_adapters: Whether some row has a LoRA adapter.
        has_media: Whether some tokens have features of images.
    """

    slots: list[int]
    draw_slots: list[int]
    queries: list[int]
    num_draws: list[int]
    host_ids: list[int]
    tree: TreeNodes
    drawn: list[int]
    drawn_slots: list[int]
    pooled: dict[int, list[int]]
    max_draws: int
    draw_kinds: frozenset[str]
    wants_logprobs: list[tuple[int, int, SlotFacts]]
    scored: list[ScoredRow]
    is_uniform: bool
    is_decode: bool
    has_adapters: bool
    has_media: bool = False

    def is_repeated_by(self, plan: StepPlan) -> bool:
        """Whether ``plan`` has these rows again, each with tokens that the device has."""
        return (
            plan.steady
            and self.is_decode
            and plan.rows.slots == self.slots
            and plan.rows.query_max == self.queries
            and plan.rows.yields.count(DRAW) == len(self.drawn)
            and (MASKS in self.draw_kinds) == bool(plan.masked)
        )


def read_rows(
    plan: StepPlan,
    facts: Mapping[int, SlotFacts],
    null_slot: int,
    tree: TreeNodes,
    *,
    has_media: bool = False,
) -> RowSet:
    """Read the rows of ``plan``.

    Args:
        plan: A plan that is not steady, or whose rows' record was lost.
        facts: By slot.
        null_slot: Stands in for the slots of rows that draw nothing.
        tree: The step's tree.
        has_media: Whether some tokens have features of images.
    """
    rows = plan.rows
    drawn, drawn_slots, draw_slots = _draws(rows, null_slot)
    host_ids, scored = _tokens(plan, facts)
    num_draws = _num_draws(rows)
    kinds = frozenset({MASKS}) if plan.masked else GREEDY
    kinds = kinds.union(*{facts[slot].draw_kinds for slot in drawn_slots})
    return RowSet(
        slots=rows.slots,
        draw_slots=draw_slots,
        queries=rows.query_max,
        num_draws=num_draws,
        host_ids=host_ids,
        tree=tree,
        drawn=drawn,
        drawn_slots=drawn_slots,
        pooled=_pooled(rows),
        max_draws=max(num_draws) if drawn else 0,
        draw_kinds=kinds,
        wants_logprobs=[
            (row, slot, facts[slot])
            for row, slot in zip(drawn, drawn_slots, strict=True)
            if LOGPROBS in facts[slot].draw_kinds
        ]
        if LOGPROBS in kinds
        else [],
        scored=scored,
        is_uniform=_is_uniform(rows.query_max, num_draws),
        is_decode=not plan.host_ids and FROM_HOST not in rows.source,
        has_adapters=any(facts[slot].has_adapter for slot in rows.slots),
        has_media=has_media,
    )


def _pooled(rows: Rows) -> dict[int, list[int]]:
    """Return the rows that are pooled, by what they yield."""
    return {
        kind: [row for row, yielded in enumerate(rows.yields) if yielded == kind]
        for kind in POOLED.values()
        if kind in rows.yields
    }


def _draws(rows: Rows, null_slot: int) -> tuple[list[int], list[int], list[int]]:
    """Return the rows that draw, their slots, and a slot for each row: ``null_slot`` for others."""
    drawn = list(range(len(rows.slots)))
    if rows.yields.count(DRAW) == len(drawn):
        return drawn, rows.slots, rows.slots
    drawn = [row for row, yielded in enumerate(rows.yields) if yielded == DRAW]
    drawn_slots = [rows.slots[row] for row in drawn]
    draw_slots = [null_slot] * len(rows.slots)
    for row, slot in zip(drawn, drawn_slots, strict=True):
        draw_slots[row] = slot
    return drawn, drawn_slots, draw_slots


def _num_draws(rows: Rows) -> list[int]:
    """Return from how many of its tokens each row draws: drafts are judged by as many draws."""
    if FROM_DEVICE not in rows.source:
        return [1] * len(rows.slots)
    return [
        query if yielded == DRAW and source == FROM_DEVICE else 1
        for query, yielded, source in zip(rows.query_max, rows.yields, rows.source, strict=True)
    ]


def _is_uniform(queries: list[int], num_draws: list[int]) -> bool:
    """Whether a step has equally many tokens a row, and draws from each of them."""
    return queries == num_draws and min(queries) == max(queries)


def _tokens(plan: StepPlan, facts: Mapping[int, SlotFacts]) -> tuple[list[int], list[ScoredRow]]:
    """Return the step's token ids, codes for those on the device, and what is to be scored.

    A scored row has the token after its chunk behind it, unless it is the one that yields: its
    chunk ends the prompt.
    """
    rows = plan.rows
    ids: list[int] = []
    scored: list[ScoredRow] = []
    taken = 0
    if not plan.host_ids and max(rows.query_max) == 1:
        return [LAST_ID] * len(rows.slots), scored
    for row, query in enumerate(rows.query_max):
        if rows.source[row] == FROM_DEVICE:
            ids.append(LAST_ID)
            if query > 1:
                ids += range(FIRST_DRAFT, FIRST_DRAFT - query + 1, -1)
            continue
        has_next = int(rows.score[row] > 0 and not rows.yields[row])
        chunk = plan.host_ids[taken : taken + query + has_next]
        taken += query + has_next
        if rows.score[row]:
            targets = chunk[len(chunk) - rows.score[row] :]
            begin = len(ids) + len(chunk) - len(targets) - 1
            scored.append(ScoredRow(rows.slots[row], begin, targets, facts[rows.slots[row]]))
        ids += chunk[:query]
    assert taken == len(plan.host_ids), (
        f"step {plan.step}: rows take {taken} host ids of {len(plan.host_ids)}"
    )
    return ids, scored
