"""A runner without tensors that keeps the slot table and distrusts every plan.

What a page holds is modelled as the tokens written to it, each with a hash of all the tokens before
it in its request. A drawn token is a hash of the row's whole context, read through its page table:
a wrong page, chunk or order changes the tokens or fails an assertion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

from headstock.wire.steps import (
    FROM_DEVICE,
    FROM_HOST,
    NULL_PAGE,
    Admit,
    Fault,
    Logprobs,
    Masks,
    PageGroup,
    RunnerLimits,
    StepPlan,
    StepResult,
    TreeNodes,
)

MASK = (1 << 64) - 1
ROOT = 0x9E3779B97F4A7C15


def mix(chain: int, token: int) -> int:
    """Return the hash of a context with one more token."""
    chain = ((chain ^ (token + 1)) * 0xBF58476D1CE4E5B9) & MASK
    return chain ^ (chain >> 29)


def draw(
    chain: int, admit: Admit, index: int, vocab_size: int, mask: Container[int] | None = None
) -> int:
    """Return output ``index`` after a context; stop ids only from ``min_outputs`` on."""
    token = mix(mix(chain, admit.seed & MASK), index) % vocab_size
    for _ in range(vocab_size):
        is_early = index < admit.min_outputs and token in admit.stop_ids
        if not is_early and (mask is None or token in mask):
            return token
        token = (token + 1) % vocab_size
    raise AssertionError("nothing may be drawn")


def allowed_ids(words: bytes) -> set[int]:
    """Return the ids whose bits are set."""
    return {i for i in range(8 * len(words)) if words[i >> 3] >> (i & 7) & 1}


def expected_outputs(
    prompt: Sequence[int],
    *,
    max_outputs: int,
    vocab_size: int,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
    min_outputs: int = 0,
    drawable: Callable[[int], set[int]] | None = None,
) -> list[int]:
    """Return what a request must yield, whatever happens around it: the naive model."""
    facts = Admit(0, 0, 0, max_outputs, min_outputs, list(stop_ids), seed=seed)
    chain = ROOT
    for token in prompt:
        chain = mix(chain, token)
    outputs: list[int] = []
    while len(outputs) < max_outputs:
        mask = None if drawable is None else drawable(len(outputs))
        if mask is not None and not mask:
            break
        token = draw(chain, facts, len(outputs), vocab_size, mask)
        outputs.append(token)
        chain = mix(chain, token)
        if token in stop_ids:
            break
    return outputs


@dataclass
class Slot:
    facts: Admit
    length: int
    num_outputs: int
    pages: list[int] = field(default_factory=list)
    last: int | None = None
    is_done: bool = False


@dataclass
class Handle:
    step: int
    outcome: StepResult | None
    pages: set[int]
    written: set[tuple[int, int]]
    masked: StepPlan | None = None


class NullRunner:
    """Runs plans on a model of memory.

    Args:
        poison: Rows that read or compute this token fail.
        explode: Step number to where it raises: "launch", "entered" (launched by half), "sample"
            or "result".
    """

    def __init__(
        self,
        *,
        num_slots: int = 4,
        max_step_tokens: int = 64,
        max_length: int = 64,
        vocab_size: int = 50,
        depth: int = 2,
        page_tokens: int = 4,
        num_pages: int = 64,
        poison: int | None = None,
        explode: dict[int, str] | None = None,
    ) -> None:
        group = PageGroup("full", page_tokens, 1, num_pages)
        self.limits = RunnerLimits(
            num_slots, max_step_tokens, max_length, vocab_size, depth, [group]
        )
        self.page_tokens = page_tokens
        self.num_pages = num_pages
        self.poison = poison
        self.explode = explode or {}
        self.events: list[tuple[str, int]] = []
        self.plans: list[StepPlan] = []
        self.slots: dict[int, Slot] = {}
        self.memory: dict[tuple[int, int], tuple[int, int | None]] = {}
        self.masks: dict[int, set[int]] = {}
        self.tree = TreeNodes()
        self.written: set[tuple[int, int]] = set()
        self.unsettled: deque[Handle] = deque()
        self.has_just_failed = False

    # The Runner protocol.

    def launch(self, plan: StepPlan) -> Handle:
        assert len(self.unsettled) < self.limits.depth, "more steps in flight than the depth"
        assert all(handle.outcome for handle in self.unsettled), "a step waits for its masks"
        self.events.append(("launch", plan.step))
        if self.explode.get(plan.step) == "launch":
            self.has_just_failed = True
            raise RuntimeError(f"launch {plan.step} exploded")
        if self.plans:
            assert plan.step > self.plans[-1].step
        self._enter(plan)
        if self.explode.get(plan.step) == "entered":
            self.has_just_failed = True
            raise RuntimeError(f"launch {plan.step} exploded by half")
        self._check_rows(plan)
        self._check_tree(plan)
        touched = {page for slot in plan.rows.slots for page in self.slots[slot].pages}
        self.written = set()
        handle = Handle(plan.step, None, touched, self.written)
        if plan.masked:
            assert set(plan.masked) <= set(plan.rows.slots)
            handle.masked = plan
        else:
            self.masks = {}
            handle.outcome = self._run(plan)
        self.plans.append(plan)
        self.unsettled.append(handle)
        self.has_just_failed = False
        return handle

    def sample(self, handle: Handle, masks: Masks) -> None:
        self.events.append(("sample", handle.step))
        plan = handle.masked
        assert plan is not None, "nothing of this step is masked"
        assert handle.outcome is None, "a step draws twice"
        assert masks.slots == plan.masked
        if self.explode.get(handle.step) == "sample":
            self.has_just_failed = True
            self.unsettled.remove(handle)
            raise RuntimeError(f"sample {handle.step} exploded")
        self.masks = dict(zip(masks.slots, map(allowed_ids, masks.words), strict=True))
        handle.outcome = self._run(plan)

    def result(self, handle: Handle) -> StepResult:
        self.events.append(("result", handle.step))
        assert handle.outcome is not None, "a step's masks never came"
        assert self.unsettled.popleft() is handle, "results are read out of order"
        if self.explode.get(handle.step) == "result":
            self.has_just_failed = True
            # What a failed step wrote is anyone's guess.
            for place in handle.written:
                self.memory[place] = (-1, None)
            raise RuntimeError(f"result {handle.step} exploded")
        return handle.outcome

    def close(self) -> None:
        self.slots.clear()

    # The slot table.

    def _enter(self, plan: StepPlan) -> None:
        for slot in plan.leave:
            assert slot in self.slots or self.has_just_failed, f"empty slot {slot} leaves"
            self.slots.pop(slot, None)
        for admit in plan.admit:
            assert 0 <= admit.slot < self.limits.num_slots
            assert admit.slot not in self.slots, f"slot {admit.slot} is taken"
            assert admit.num_outputs < admit.max_outputs
            self.slots[admit.slot] = Slot(admit, admit.length, admit.num_outputs)
        append = plan.append
        entries = zip(append.groups, append.slots, append.indexes, append.pages, strict=True)
        for group, slot, index, page in entries:
            assert group == 0
            assert NULL_PAGE < page < self.num_pages, f"page {page} does not exist"
            row = self.slots[slot]
            assert index == len(row.pages), "a page table grows in order"
            row.pages.append(page)
            self._check_sharing(slot, index, page)
            if (index + 1) * self.page_tokens > row.facts.length:
                for handle in self.unsettled:
                    assert page not in handle.pages, "a step in flight still uses this page"

    def _check_sharing(self, slot: int, index: int, page: int) -> None:
        """A page stands in two tables only as the same full page of the same prefix."""
        end = (index + 1) * self.page_tokens
        for other_slot, other in self.slots.items():
            if other_slot == slot or page not in other.pages:
                continue
            assert end <= self.slots[slot].facts.length, "a page that will be written is shared"
            assert other.pages.index(page) == index, "a shared page has two places"
            assert end <= other.length, "a shared page is not full yet"

    # Verification.

    def _check_rows(self, plan: StepPlan) -> None:
        rows, limits = plan.rows, self.limits
        columns = (rows.slots, rows.query_max, rows.kv_max, rows.source, rows.yields, rows.score)
        assert len({len(column) for column in columns}) == 1
        assert rows.slots, "an empty step"
        assert len(set(rows.slots)) == len(rows.slots), "a slot has two rows"
        assert sum(rows.query_max) <= limits.max_step_tokens
        for slot, query, kv, source in zip(*columns[:4], strict=True):
            row = self.slots[slot]
            assert 1 <= query <= kv <= limits.max_length
            assert kv <= len(row.pages) * self.page_tokens, "the bound is past the pages"
            assert kv > (len(row.pages) - 1) * self.page_tokens or source == FROM_HOST
            if source == FROM_DEVICE:
                assert query == 1
                assert row.last is not None, "nothing was drawn yet"
            if not row.is_done:
                assert row.length == kv - query, "the row does not go on where it stands"
        if plan.steady:
            before = self.plans[-1].rows
            assert rows.slots is before.slots
            assert rows.query_max is before.query_max
            assert rows.source is before.source
            assert rows.yields is before.yields
            assert rows.score is before.score
            assert set(rows.source) == {FROM_DEVICE}
            assert set(before.source) == {FROM_DEVICE}
            assert (plan.host_ids, plan.leave, plan.admit) == ([], [], [])

    def _check_tree(self, plan: StepPlan) -> None:
        if plan.tree is None:
            assert plan.rows.slots == self.plans[-1].rows.slots, "rows changed, the tree did not"
        else:
            self.tree = plan.tree
        tree, rows, size = self.tree, plan.rows, self.page_tokens
        for begin, end, kv_begin, kv_end in zip(
            tree.row_begin, tree.row_end, tree.kv_begin, tree.kv_end, strict=True
        ):
            assert end - begin >= 2
            assert kv_begin % size == kv_end % size == 0
            assert kv_begin < kv_end
            tables = [
                self.slots[slot].pages[kv_begin // size : kv_end // size]
                for slot in rows.slots[begin:end]
            ]
            assert all(table == tables[0] for table in tables), "a node's rows differ"
            for query, kv in zip(rows.query_max[begin:end], rows.kv_max[begin:end], strict=True):
                assert kv_end <= kv - query, "a node reaches into a row's queries"

    # The model.

    def _run(self, plan: StepPlan) -> StepResult:
        # All rows read what earlier steps wrote before any row of this step writes.
        contexts = [self._read(slot) for slot in plan.rows.slots]
        ids = iter(plan.host_ids)
        result = StepResult(plan.step, [], [], [], [])
        rows = plan.rows
        for place, slot in enumerate(rows.slots):
            row = self.slots[slot]
            query, sample, score = rows.query_max[place], rows.yields[place], rows.score[place]
            if rows.source[place] == FROM_HOST:
                tokens = [next(ids) for _ in range(query)]
                scored = tokens + ([next(ids)] if score and not sample else [])
            else:
                assert row.last is not None
                tokens = scored = [row.last]
            if score:
                assert score <= len(scored) - 1 + min(1, row.length), "scores an unseen position"
                targets = [float(token) for token in scored[-score:]]
                result.logprobs.append(Logprobs(slot, True, targets))
            chain = contexts[place]
            if not row.is_done:
                chain = self._write(slot, row, tokens, chain)
            if chain is None:
                result.faults.append(Fault(slot, "not a number"))
            if sample:
                self._sample(slot, row, chain, result)
        assert next(ids, None) is None, "host ids are left over"
        return result

    def _read(self, slot: int) -> int | None:
        """Verify what the row's pages hold and return its context's hash; None: it is poisoned."""
        row = self.slots[slot]
        chain = ROOT
        for position in range(row.length):
            place = (row.pages[position // self.page_tokens], position % self.page_tokens)
            token, stored = self.memory[place]
            if stored is None:
                return None
            chain = mix(chain, token)
            assert chain == stored, f"slot {slot} reads another prefix at position {position}"
        return chain

    def _write(self, slot: int, row: Slot, tokens: list[int], chain: int | None) -> int | None:
        for token in tokens:
            page = row.pages[row.length // self.page_tokens]
            for other_slot, other in self.slots.items():
                assert other_slot == slot or page not in other.pages, "writes to a shared page"
            chain = None if chain is None or token == self.poison else mix(chain, token)
            self.memory[page, row.length % self.page_tokens] = (token, chain)
            self.written.add((page, row.length % self.page_tokens))
            row.length += 1
        return chain

    def _sample(self, slot: int, row: Slot, chain: int | None, result: StepResult) -> None:
        result.slots.append(slot)
        if row.is_done or chain is None:
            row.is_done = True
            row.last = row.last or 0
            result.counts.append(0)
            result.done.append(1)
            return
        mask = self.masks.get(slot)
        token = draw(chain, row.facts, row.num_outputs, self.limits.vocab_size, mask)
        row.num_outputs += 1
        row.last = token
        row.is_done = token in row.facts.stop_ids or row.num_outputs >= row.facts.max_outputs
        result.counts.append(1)
        result.ids.append(token)
        result.done.append(int(row.is_done))
        if row.facts.logprobs >= 0:
            result.logprobs.append(Logprobs(slot, False, [float(token)]))
