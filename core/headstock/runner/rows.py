"""Who takes part in a step and what that asks of the sampler. Host only, kept while it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headstock.runner.inputs import RowInputs
from headstock.runner.slots import is_greedy
from headstock.wire.steps import FROM_DEVICE, FROM_HOST, Admit, StepPlan, TreeNodes

SAMPLE = "sample"
"""Some row draws; without it a step ends with the forward pass."""
DRAW = "draw"
"""Some row is not greedy."""
PENALTIES = "penalties"
BIAS = "bias"
FLOOR = "floor"
"""Some row must not stop before it has ``min_outputs``."""
LOGPROBS = "logprobs"

NO_TREE = TreeNodes()


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """What the host remembers of a slot's request.

    Attributes:
        features: What sampling does for it.
        logprobs: -1: none; k: the drawn token's and the top k's.
        asked_ids: Ids whose logprobs it wants.
    """

    features: frozenset[str]
    logprobs: int
    asked_ids: tuple[int, ...]

    @classmethod
    def of(cls, admit: Admit) -> SlotFacts:
        """Read them off an admission."""
        features = {
            DRAW: not is_greedy(admit),
            PENALTIES: has_penalties(admit),
            BIAS: bool(admit.bias_ids),
            FLOOR: admit.min_outputs > admit.num_outputs,
            LOGPROBS: admit.logprobs >= 0 or bool(admit.asked_ids),
        }
        asked = frozenset(name for name, is_asked in features.items() if is_asked)
        return cls(asked, admit.logprobs, tuple(admit.asked_ids))


def has_penalties(admit: Admit) -> bool:
    """Whether earlier tokens change the request's logits."""
    return (
        admit.repetition_penalty != 1 or admit.frequency_penalty != 0 or admit.presence_penalty != 0
    )


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
        inputs: As the device is told of them.
        sampled: Which rows draw. Indexes.
        sampled_slots: Whose they are.
        features: What sampling must do.
        wants_logprobs: Sampled rows that do: (row, slot, facts).
        scored: Prompt positions to score.
        is_uniform: Whether every row has one token.
        is_decode: Whether every row's token is its slot's last one.
    """

    inputs: RowInputs
    sampled: list[int]
    sampled_slots: list[int]
    features: frozenset[str]
    wants_logprobs: list[tuple[int, int, SlotFacts]]
    scored: list[ScoredRow]
    is_uniform: bool
    is_decode: bool

    def is_repeated_by(self, plan: StepPlan) -> bool:
        """Whether ``plan`` has these rows again, each with the token drawn by the last step."""
        return (
            plan.steady
            and self.is_decode
            and plan.rows.slots == self.inputs.slots
            and sum(plan.rows.yields) == len(self.sampled)
        )


def read_rows(
    plan: StepPlan, facts: Mapping[int, SlotFacts], null_slot: int, tree: TreeNodes
) -> RowSet:
    """Read the rows of ``plan``.

    Args:
        plan: A plan that is not steady, or whose rows' record was lost.
        facts: By slot.
        null_slot: Stands in for the slots of rows that draw nothing.
        tree: The step's tree.
    """
    rows = plan.rows
    sampled = [row for row, is_sampled in enumerate(rows.yields) if is_sampled]
    sampled_slots = [rows.slots[row] for row in sampled]
    host_ids, scored = _tokens(plan, facts)
    inputs = RowInputs(
        slots=rows.slots,
        sample_slots=[
            slot if is_sampled else null_slot
            for slot, is_sampled in zip(rows.slots, rows.yields, strict=True)
        ],
        queries=rows.query_max,
        host_ids=host_ids,
        tree=tree,
    )
    features = frozenset({SAMPLE}) if sampled else frozenset[str]()
    return RowSet(
        inputs=inputs,
        sampled=sampled,
        sampled_slots=sampled_slots,
        features=features.union(*(facts[slot].features for slot in sampled_slots)),
        wants_logprobs=[
            (row, slot, facts[slot])
            for row, slot in zip(sampled, sampled_slots, strict=True)
            if LOGPROBS in facts[slot].features
        ],
        scored=scored,
        is_uniform=len(host_ids) == len(rows.slots),
        is_decode=not plan.host_ids and FROM_HOST not in rows.source,
    )


def _tokens(plan: StepPlan, facts: Mapping[int, SlotFacts]) -> tuple[list[int], list[ScoredRow]]:
    """Return the step's token ids, -1 for those on the device, and what is to be scored.

    A scored row has the token after its chunk behind it, unless it is the one that samples: its
    chunk ends the prompt.
    """
    rows = plan.rows
    if FROM_HOST not in rows.source:
        return [-1] * len(rows.slots), []
    ids: list[int] = []
    scored: list[ScoredRow] = []
    taken = 0
    for row, query in enumerate(rows.query_max):
        if rows.source[row] == FROM_DEVICE:
            ids.append(-1)
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
