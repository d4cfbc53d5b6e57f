"""Step plans written down: requests in, columns out; changes and shared prefixes, too."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headstock.scheduler.request import Request
from headstock.wire.media import Encode, Features
from headstock.wire.steps import (
    DRAW,
    FROM_DEVICE,
    FROM_HOST,
    NOTHING,
    Admit,
    PageAppends,
    Rows,
    StepPlan,
    TreeNodes,
)

Members = list[int]


def depth_first(
    tables: Sequence[Sequence[int]], limits: Sequence[int], page_tokens: int
) -> tuple[list[int], TreeNodes]:
    """Order rows so that those with a common prefix are neighbours, and name the prefixes.

    Rows keep their order as far as that allows. Within the limits, equal entries at one index
    mean equal entries before it: a page holds what it holds after one prefix only.

    Args:
        tables: Page tables of the rows.
        limits: How many leading entries of each may be shared.
        page_tokens: Tokens a page holds.

    Returns:
        The rows' indexes in depth-first order, and the nodes, each before those below it.
    """
    order: list[int] = []
    row_begin: list[int] = []
    row_end: list[int] = []
    kv_begin: list[int] = []
    kv_end: list[int] = []
    stack: list[tuple[Members, int]] = [(list(range(len(tables))), 0)] if tables else []
    while stack:
        members, low = stack.pop()
        if len(members) == 1:
            order.append(members[0])
            continue
        high = _common_pages(tables, limits, members, low)
        if high > low:
            row_begin.append(len(order))
            row_end.append(len(order) + len(members))
            kv_begin.append(low * page_tokens)
            kv_end.append(high * page_tokens)
        # A row whose prefix ends here is a part of its own; pages are never negative.
        keys = [tables[each][high] if limits[each] > high else -1 - each for each in members]
        if len(set(keys)) == len(members):
            order += members
            continue
        parts: dict[int, Members] = {}
        for key, member in zip(keys, members, strict=True):
            parts.setdefault(key, []).append(member)
        stack.extend((part, high) for part in reversed(parts.values()))
    return order, TreeNodes(row_begin, row_end, kv_begin, kv_end)


def _common_pages(
    tables: Sequence[Sequence[int]], limits: Sequence[int], members: Members, low: int
) -> int:
    """Return how many leading pages all ``members`` share; ``low`` they are known to."""
    first = tables[members[0]]
    high = min([limits[member] for member in members])
    for member in members:
        if high <= low:
            return low
        table = tables[member]
        if table[high - 1] == first[high - 1]:
            continue
        below, above = low, high - 1
        while below < above:
            middle = (below + above + 1) // 2
            if table[middle - 1] == first[middle - 1]:
                below = middle
            else:
                above = middle - 1
        high = below
    return high


NO_APPENDS = PageAppends()


class Changes(msgspec.Struct, eq=False):
    """Slots that are left and entered, and page table entries.

    Args:
        tokens: Indexes of the groups of tokens.
        states: Indexes of the ``state`` groups.
    """

    tokens: Sequence[int]
    states: Sequence[int]
    leave: list[int] = []
    admits: list[Admit] = []
    _groups: list[int] = []
    _slots: list[int] = []
    _indexes: list[int] = []
    _pages: list[int] = []

    def admit(self, request: Request) -> None:
        """Enter ``request`` with its page tables, before anything of it is planned."""
        self.admits.append(request.admit_facts())
        slot = request.slot
        for group, table in zip(self.tokens, request.tables.tokens, strict=True):
            begin, end = table.first, len(table.pages)
            self._groups += [group] * (end - begin)
            self._slots += [slot] * (end - begin)
            self._indexes += range(begin, end)
            self._pages += table.pages[begin:] if begin else table.pages
        if not self.states:
            return
        for group, table in zip(self.states, request.tables.states, strict=True):
            for entry, page in enumerate(table.pages):
                self.set(request.slot, group, entry, page)

    def append(self, request: Request, begin: int) -> None:
        """Note the pages that ``request`` has from entry ``begin`` on, in all groups of tokens."""
        for place, group in enumerate(self.tokens):
            pages = request.tables.tokens[place].pages
            if len(pages) == begin + 1:
                self.set(request.slot, group, begin, pages[begin])
            else:
                self.append_pages(request, place, begin)

    def append_pages(self, request: Request, place: int, begin: int) -> None:
        """Note its pages from entry ``begin`` on in the group of tokens at ``place``."""
        pages = request.tables.tokens[place].pages
        end = len(pages)
        self._groups += [self.tokens[place]] * (end - begin)
        self._slots += [request.slot] * (end - begin)
        self._indexes += range(begin, end)
        self._pages += pages[begin:]

    def set(self, slot: int, group: int, entry: int, page: int) -> None:
        """Note that ``entry`` of ``slot`` in ``group`` is ``page`` now."""
        self._groups.append(group)
        self._slots.append(slot)
        self._indexes.append(entry)
        self._pages.append(page)

    def appends(self) -> PageAppends:
        """Return the page table entries as columns."""
        if not self._slots:
            return NO_APPENDS
        return PageAppends(self._groups, self._slots, self._indexes, self._pages)


NO_IDS: list[int] = []
NO_SLOTS: list[int] = []
NO_ADMITS: list[Admit] = []


class PlanWriter:
    """Writes plans, and keeps of the last one what the next may say again.

    Rows stand in depth-first order of the tree; it is found anew only when other requests are
    planned than in the step before. A steady step costs one new column.
    """

    def __init__(self, page_tokens: int, *, has_drafts: bool) -> None:
        self._has_drafts = has_drafts
        self._page_tokens = page_tokens
        self._members: list[Request] = []
        self.rows: list[Request] = []
        self._columns = Rows([], [], [], [], [], [])
        self._has_masked = False
        self._masked: list[int] = NO_SLOTS

    def write(
        self,
        step: int,
        members: list[Request],
        hosted: list[Request],
        changes: Changes,
        encode: list[Encode],
        features: list[Features],
    ) -> StepPlan:
        """Return the plan of ``members``, each with its ``query`` set.

        Args:
            step: Its number.
            members: Whose rows it has.
            hosted: Those of them whose tokens come from the host, each with its ``score`` set.
            changes: What goes before the rows.
            encode: Images that are encoded before them.
            features: Where the rows' images lie.
        """
        tree = None
        if changes.admits or members != self._members:
            tree = self._arrange(members, hosted)
        rows = self.rows
        count = len(rows)
        columns = self._columns = Rows(
            slots=[request.slot for request in rows],
            query_max=[request.query for request in rows] if self._has_drafts else [1] * count,
            kv_max=[request.kv_max for request in rows]
            if self._has_drafts
            else [request.computed for request in rows],
            source=[FROM_DEVICE] * count,
            yields=[DRAW] * count,
            score=[0] * count,
        )
        host_ids = self._fill_hosted(columns, hosted) if hosted else NO_IDS
        self._masked = self._masked_slots() if self._has_masked else NO_SLOTS
        return StepPlan(
            step=step,
            rows=columns,
            host_ids=host_ids,
            leave=changes.leave,
            admit=changes.admits,
            append=changes.appends(),
            tree=tree,
            masked=self._masked,
            encode=encode,
            features=features,
        )

    def write_steady(self, step: int, kv_max: list[int], changes: Changes | None) -> StepPlan:
        """Return the plan that gives every row of the last plan as many tokens again."""
        last = self._columns
        columns = Rows(last.slots, last.query_max, kv_max, last.source, last.yields, last.score)
        self._columns = columns
        append = NO_APPENDS if changes is None else changes.appends()
        return StepPlan(
            step, columns, NO_IDS, NO_SLOTS, NO_ADMITS, append, steady=True, masked=self._masked
        )

    def drawing(self) -> list[Request]:
        """Return the requests whose rows of the last plan draw, in its order."""
        all_yields = self._columns.yields
        if all_yields.count(DRAW) == len(all_yields):
            return self.rows
        columns = zip(self.rows, all_yields, strict=True)
        return [request for request, yields in columns if yields == DRAW]

    @property
    def kv_max(self) -> list[int]:
        """Lengths of the last plan's rows."""
        return self._columns.kv_max

    @property
    def query_max(self) -> list[int]:
        """Tokens of the last plan's rows."""
        return self._columns.query_max

    def forget(self) -> None:
        """Write the next plan from scratch: the runner may not have seen the last one."""
        self._members = []
        self.rows = []

    def _fill_hosted(self, columns: Rows, hosted: list[Request]) -> list[int]:
        """Write what differs in the rows of ``hosted``; returns their tokens, row after row."""
        place_of = dict(zip(columns.slots, range(len(columns.slots)), strict=True))
        places = [place_of[request.slot] for request in hosted]
        if len(places) > 1:
            places.sort()
        ids: list[int] = []
        for place in places:
            request = self.rows[place]
            end = request.computed
            is_last = end == request.host_end
            columns.query_max[place] = request.query
            columns.source[place] = FROM_HOST
            columns.score[place] = request.score
            columns.yields[place] = request.yields if is_last else NOTHING
            # A scored chunk that does not end the prompt brings the token after it, too.
            extra = 1 if request.score and not is_last else 0
            ids += request.tokens(end - request.query, end + extra)
        return ids

    def _arrange(self, members: list[Request], hosted: list[Request]) -> TreeNodes:
        size = self._page_tokens
        # What is shared was written before this step. Of those that the device feeds all is: their
        # pages are shared when the tokens have settled.
        for request in hosted:
            before = (request.computed - request.query) // size
            request.num_shared = min(request.num_shared, before)
        limits = [request.num_shared for request in members]
        for request in hosted:
            request.num_shared = request.tables.num_shared
        if self._has_drafts:
            # Drafts in flight may prove wrong: a row may begin before its bound.
            limits = [
                min(limit, request.begin_min // size)
                for limit, request in zip(limits, members, strict=True)
            ]
        order, tree = depth_first([request.pages for request in members], limits, size)
        self._members = members
        self.rows = [members[index] for index in order]
        self._has_masked = True in [request.is_masked for request in members]
        return tree

    def _masked_slots(self) -> list[int]:
        """Return the slots that draw under a mask."""
        return [
            request.slot
            for request, yields in zip(self.rows, self._columns.yields, strict=True)
            if request.is_masked and yields == DRAW
        ]
