"""A runner without tensors that keeps the slot table and distrusts every plan.

What a page holds is modelled as the tokens written to it, each with a hash of all the tokens before
it in its request. A drawn token is a hash of the row's whole context, read through its page table:
a wrong page, chunk or order changes the tokens or fails an assertion.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field

import msgspec
from null_model import ROOT, allowed_ids, draw, mix, root

from headstock.wire.steps import (
    DRAW,
    FROM_DEVICE,
    FROM_HOST,
    NULL_PAGE,
    POOL,
    STATE_IN,
    STATE_OUT,
    Admit,
    Fault,
    Logprobs,
    Masks,
    PageGroup,
    Pooled,
    RunnerLimits,
    StepPlan,
    StepResult,
    TreeNodes,
)


@dataclass
class Slot:
    """A request's place: its tables are dictionaries from entry to page, one a group."""

    facts: Admit
    length: int
    num_outputs: int
    tables: list[dict[int, int]]
    last: int | None = None
    is_done: bool = False
    kv_peak: int = 0
    adapter: str = ""
    num_ready: int = 0


@dataclass
class Handle:
    step: int
    outcome: StepResult | None
    touched: set[tuple[int, int]]
    written: set[tuple[int, int, int]]
    loose: dict[int, int] = field(default_factory=dict)
    masked: StepPlan | None = None


def full(page_tokens: int = 4, num_pages: int = 64) -> PageGroup:
    return PageGroup("full", page_tokens, 1, num_pages)


def window(size: int, page_tokens: int = 4, num_pages: int = 64) -> PageGroup:
    return PageGroup("window", page_tokens, 1, num_pages, size)


def state(num_pages: int = 32) -> PageGroup:
    return PageGroup("state", 1, 1, num_pages)


def shared(groups: list[PageGroup], num_slabs: int) -> list[PageGroup]:
    """Return the groups as sharers of one arena, with slabs of 3 pages, 4 pages and so on."""
    return [
        msgspec.structs.replace(group, slab_pages=3 + place, num_pages=num_slabs * (3 + place))
        for place, group in enumerate(groups)
    ]


class NullRunner:
    """Runs plans on a model of memory.

    Args:
        groups: The page groups; one that keeps everything when None.
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
        max_drafts: int = 0,
        groups: list[PageGroup] | None = None,
        poison: int | None = None,
        explode: dict[int, str] | None = None,
        yields: tuple[str, ...] = ("draw", "pool"),
        is_causal: bool = True,
        num_adapters: int = 0,
        max_draft_rows: int = 64,
    ) -> None:
        groups = [full(page_tokens, num_pages)] if groups is None else groups
        self.limits = RunnerLimits(
            num_slots,
            max_step_tokens,
            max_length,
            vocab_size,
            depth,
            groups,
            max_drafts,
            num_adapters,
            yields,
            is_causal,
            max_draft_rows,
        )
        self.groups = groups
        self.page_tokens = next((g.page_tokens for g in groups if g.kind != "state"), 1)
        self.poison = poison
        self.explode = explode or {}
        self.events: list[tuple[str, int]] = []
        self.plans: list[StepPlan] = []
        self.slots: dict[int, Slot] = {}
        self.places: dict[int, str] = {}
        self.memory: dict[tuple[int, int, int], tuple[int, int | None]] = {}
        self.masks: dict[int, set[int]] = {}
        self.tree = TreeNodes()
        self.written: set[tuple[int, int, int]] = set()
        self.loose: dict[int, int] = {}
        self.unsettled: deque[Handle] = deque()
        self.slab_owners: dict[int, int] = {}
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
        touched = {
            (group, page)
            for slot in plan.rows.slots
            for group, table in enumerate(self.slots[slot].tables)
            for index, page in table.items()
            if index >= self._first_live(group, self.slots[slot].length)
        }
        self.written = set()
        handle = Handle(plan.step, None, touched, self.written)
        if plan.masked:
            assert set(plan.masked) <= set(plan.rows.slots)
            handle.masked = plan
        else:
            self._draw(handle, plan, {})
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
        self._draw(handle, plan, dict(zip(masks.slots, map(allowed_ids, masks.words), strict=True)))

    def _draw(self, handle: Handle, plan: StepPlan, masks: dict[int, set[int]]) -> None:
        self.masks, self.loose = masks, handle.loose
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
        for place, adapter in plan.adapters:
            assert 1 <= place <= self.limits.num_adapters
            self.places[place] = adapter
        for slot in plan.leave:
            assert slot in self.slots or self.has_just_failed, f"empty slot {slot} leaves"
            self.slots.pop(slot, None)
        for admit in plan.admit:
            assert 0 <= admit.slot < self.limits.num_slots
            assert admit.slot not in self.slots, f"slot {admit.slot} is taken"
            assert admit.num_outputs < admit.max_outputs
            assert admit.adapter == 0 or admit.adapter in self.places, "an empty place is used"
            assert not admit.drafts or len(admit.history) == admit.num_prompt + admit.num_outputs
            assert not admit.drafts or self.limits.max_drafts
            tables: list[dict[int, int]] = [{} for _ in self.groups]
            adapter = self.places.get(admit.adapter, "")
            self.slots[admit.slot] = Slot(
                admit, admit.length, admit.num_outputs, tables, adapter=adapter
            )
        append = plan.append
        entries = zip(append.groups, append.slots, append.indexes, append.pages, strict=True)
        for group, slot, index, page in entries:
            facts = self.groups[group]
            assert NULL_PAGE < page < facts.num_pages, f"page {page} does not exist"
            if facts.kind == "state":
                self._enter_state(group, slot, index, page)
                continue
            row = self.slots[slot]
            table = row.tables[group]
            if table:
                assert index == max(table) + 1, "a page table grows in order"
            else:
                assert index <= self._first_live(group, row.length), "the window is cut off"
            table[index] = page
            self._check_sharing(group, slot, index, page)
            if (index + 1) * self.page_tokens > row.facts.length:
                for handle in self.unsettled:
                    assert (group, page) not in handle.touched, "a step in flight uses this page"

    def _enter_state(self, group: int, slot: int, index: int, page: int) -> None:
        assert index in (STATE_IN, STATE_OUT)
        table = self.slots[slot].tables[group]
        if index == STATE_OUT and table.get(STATE_OUT) != page:
            for other_slot, other in self.slots.items():
                assert other_slot == slot or page not in other.tables[group].values(), (
                    "another request has this page"
                )
            for handle in self.unsettled:
                assert (group, page) not in handle.touched, "a step in flight uses this page"
        table[index] = page

    def _first_live(self, group: int, length: int) -> int:
        """Return the first entry that a query after ``length`` tokens reads."""
        facts = self.groups[group]
        if facts.kind != "window":
            return 0
        return max(0, length - facts.window + 1) // self.page_tokens

    def _check_sharing(self, group: int, slot: int, index: int, page: int) -> None:
        """A page stands in two tables only as the same full page of the same prefix."""
        end = (index + 1) * self.page_tokens
        for other_slot, other in self.slots.items():
            live = self._live(other, group)
            if other_slot == slot or page not in live.values():
                continue
            assert end <= self.slots[slot].facts.length, "a page that will be written is shared"
            assert live.get(index) == page, "a shared page has two places"
            assert end <= other.length, "a shared page is not full yet"

    def _live(self, row: Slot, group: int) -> dict[int, int]:
        first = self._first_live(group, row.length)
        return {index: page for index, page in row.tables[group].items() if index >= first}

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
            row.kv_peak = max(row.kv_peak, kv)
            for group, facts in enumerate(self.groups):
                if facts.kind == "state":
                    assert set(row.tables[group]) == {STATE_IN, STATE_OUT}
                    continue
                last = max(row.tables[group])
                first = self._first_live(group, row.length)
                assert all(index in row.tables[group] for index in range(first, last + 1))
                assert kv <= (last + 1) * self.page_tokens, "the bound is past the pages"
                assert row.kv_peak > last * self.page_tokens or source == FROM_HOST
            if not limits.is_causal:
                assert query == kv, "a prompt is not computed whole"
            if source == FROM_DEVICE:
                assert query <= 1 + (limits.max_drafts if row.facts.drafts else 0)
                assert query == 1 or len(rows.slots) <= limits.max_draft_rows
                assert row.last is not None, "nothing was drawn yet"
            if not row.is_done:
                assert row.adapter == self.places.get(row.facts.adapter, ""), "a place was taken"
                assert row.length + query <= kv, "the bound is below the row's length"
                assert kv <= row.length + query + self._loose(slot), "the bound did not shrink"
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

    def _loose(self, slot: int) -> int:
        """Tokens by which unsettled steps may have left the engine's bound above the length."""
        return sum(handle.loose.get(slot, 0) for handle in self.unsettled)

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
            pages = range(kv_begin // size, kv_end // size)
            for group, facts in enumerate(self.groups):
                if facts.kind == "full":
                    tables = [self.slots[slot].tables[group] for slot in rows.slots[begin:end]]
                    parts = [[table[index] for index in pages] for table in tables]
                    assert all(part == parts[0] for part in parts), "a node's rows differ"
            for slot in rows.slots[begin:end]:
                row = self.slots[slot]
                assert row.is_done or kv_end <= row.length, "a node reaches into a row's queries"

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
                if query > 1:
                    self._verify(plan.step, slot, query, contexts[place], result)
                    continue
            if score:
                assert score <= len(scored) - 1 + min(1, row.length), "scores an unseen position"
                targets = [float(token) for token in scored[-score:]]
                result.logprobs.append(Logprobs(slot, True, targets))
            chain = contexts[place]
            if not row.is_done:
                chain = self._write(slot, row, tokens, chain)
                self._write_state(row, chain)
            if chain is None:
                result.faults.append(Fault(slot, "not a number"))
            elif sample == POOL:
                values = struct.pack("<2f", chain & 0xFFFF, len(tokens))
                result.pooled.append(Pooled(slot, values))
                row.is_done = True
            if sample == DRAW:
                self._sample(slot, row, chain, result)
        assert next(ids, None) is None, "host ids are left over"
        self._draft(plan.step, result)
        return result

    def _read(self, slot: int) -> int | None:
        """Verify what the row's pages hold and return its context's hash; None: it is poisoned.

        Groups that keep all tokens tell it from them; the others remember it, and must agree.
        """
        row = self.slots[slot]
        if row.length == 0:
            return root(row.adapter)
        chains: list[int | None] = []
        for group, facts in enumerate(self.groups):
            table = row.tables[group]
            if facts.kind == "state":
                length, chain = self.memory[group, table[STATE_IN], 0]
                assert chain is None or length == row.length, "a state of another length"
                chains.append(chain)
                continue
            first = 0 if facts.kind == "full" else max(0, row.length - facts.window + 1)
            chain = root(row.adapter) if first == 0 else None
            for position in range(first, row.length):
                place = (group, table[position // self.page_tokens], position % self.page_tokens)
                token, stored = self.memory[place]
                if stored is None:
                    return None
                is_same = chain is None or mix(chain, token) == stored
                assert is_same, f"slot {slot} reads another prefix at position {position}"
                chain = stored
            if first < row.length:
                chains.append(chain)
        assert len(set(chains)) == 1, f"slot {slot}: its groups hold different prefixes"
        return chains[0]

    def _write(self, slot: int, row: Slot, tokens: list[int], chain: int | None) -> int | None:
        begin, end = row.length, row.length + len(tokens)
        for group, facts in enumerate(self.groups):
            if facts.kind != "state":
                mine = {
                    row.tables[group][index]
                    for index in range(begin // self.page_tokens, -(-end // self.page_tokens))
                }
                for other_slot, other in self.slots.items():
                    is_other = other_slot != slot
                    shared = is_other and mine.intersection(self._live(other, group).values())
                    assert not shared, "writes to a shared page"
        for token in tokens:
            chain = None if chain is None or token == self.poison else mix(chain, token)
            for group, facts in enumerate(self.groups):
                if facts.kind == "state":
                    continue
                page = row.tables[group][row.length // self.page_tokens]
                place = (group, page, row.length % self.page_tokens)
                self._claim(group, page)
                self.memory[place] = (token, chain)
                self.written.add(place)
            row.length += 1
        return chain

    def _write_state(self, row: Slot, chain: int | None) -> None:
        for group, facts in enumerate(self.groups):
            if facts.kind == "state":
                place = (group, row.tables[group][STATE_OUT], 0)
                self._claim(group, place[1])
                self.memory[place] = (row.length, chain)
                self.written.add(place)

    def _claim(self, group: int, page: int) -> None:
        """Write to a page: what another group had in the same slab is lost."""
        size = self.groups[group].slab_pages
        if not size:
            return
        slab = page // size
        assert slab, "the slab of the null pages is written to"
        if self.slab_owners.get(slab) == group:
            return
        self.slab_owners[slab] = group
        for other, facts in enumerate(self.groups):
            if other != group and facts.slab_pages:
                pages = range(slab * facts.slab_pages, (slab + 1) * facts.slab_pages)
                for handle in self.unsettled:
                    is_used = any((other, page) in handle.touched for page in pages)
                    assert not is_used, "a step in flight uses this slab"
                for place in [place for place in self.memory if place[0] == other]:
                    if place[1] in pages:
                        del self.memory[place]

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
        self._note_draw(row, token)
        result.counts.append(1)
        result.ids.append(token)
        result.done.append(int(row.is_done))
        if row.facts.logprobs >= 0:
            result.logprobs.append(Logprobs(slot, False, [float(token)]))

    def _verify(
        self, step: int, slot: int, query: int, chain: int | None, result: StepResult
    ) -> None:
        """Draw from a row with drafts, of which all are right, or only the first few, or none."""
        row = self.slots[slot]
        assert row.last is not None
        if row.is_done:
            self._sample(slot, row, chain, result)
            return
        begin, vocab_size = row.length, self.limits.vocab_size
        num_right = min(mix(mix(ROOT, step), slot) % query, row.num_ready)
        ids: list[int] = []
        token, is_right = row.last, True
        kept = chain
        for place in range(query):
            chain = self._write(slot, row, [token], chain)
            if is_right and not row.is_done:
                kept = chain
            if is_right and chain is not None and not row.is_done:
                drawn = draw(chain, row.facts, row.num_outputs, vocab_size)
                self._note_draw(row, drawn)
                ids.append(drawn)
                token = drawn
            is_right = is_right and place < num_right and token != self.poison
            if not is_right:
                token = (token + 1) % vocab_size
        row.length = begin + max(1, len(ids))
        self._write_state(row, kept)
        if not ids:
            result.faults.append(Fault(slot, "not a number"))
            row.is_done = True
        self.loose[slot] = query - len(ids)
        result.slots.append(slot)
        result.counts.append(len(ids))
        result.ids.extend(ids)
        result.done.append(int(row.is_done))
        if row.facts.logprobs >= 0:
            result.logprobs.append(Logprobs(slot, False, [float(drawn) for drawn in ids]))

    def _draft(self, step: int, result: StepResult) -> None:
        """Have drafts for the next rows of those that may have any: often all, at times none."""
        rows = [self.slots[slot] for slot in result.slots]
        if not any(row.facts.drafts for row in rows):
            return
        for row in rows:
            is_none = mix(mix(ROOT, step), row.num_outputs) % 5 == 0
            can_draft = row.facts.drafts and not row.is_done and not is_none
            row.num_ready = self.limits.max_drafts if can_draft else 0
            result.drafts.append(row.num_ready)

    def _note_draw(self, row: Slot, token: int) -> None:
        row.num_outputs += 1
        row.last = token
        row.is_done = token in row.facts.stop_ids or row.num_outputs >= row.facts.max_outputs
