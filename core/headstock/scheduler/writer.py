"""Step plans written down: requests in, columns out."""

from __future__ import annotations

from collections.abc import Sequence

from headstock.scheduler.changes import NO_APPENDS, Changes
from headstock.scheduler.request import Request
from headstock.scheduler.sharing import depth_first
from headstock.wire.steps import (
    DRAW,
    FROM_DEVICE,
    FROM_HOST,
    NOTHING,
    Admit,
    Rows,
    StepPlan,
    TreeNodes,
)

NO_IDS: list[int] = []
NO_SLOTS: list[int] = []
NO_ADMITS: list[Admit] = []


class PlanWriter:
    """Writes plans, and keeps of the last one what the next may say again.

    Rows stand in depth-first order of the tree; it is found anew only when other requests are
    planned than in the step before. A steady step costs one new column.
    """

    def __init__(self, page_tokens: int, *, has_drafts: bool, pools: bool) -> None:
        self._pools = pools
        self._has_drafts = has_drafts
        self._page_tokens = page_tokens
        self._members: list[Request] = []
        self.rows: list[Request] = []
        self._columns = Rows([], [], [], [], [], [])

    def write(self, step: int, members: list[Request], changes: Changes) -> StepPlan:
        """Return the plan of ``members``, each with its ``query`` and ``score`` set."""
        tree = None
        if changes.admits or members != self._members:
            tree = self._arrange(members)
        rows = self.rows
        query = [request.query for request in rows]
        source = [
            FROM_HOST if request.computed - request.query < request.host_end else FROM_DEVICE
            for request in rows
        ]
        self._columns = Rows(
            slots=[request.slot for request in rows],
            query_max=query,
            kv_max=[request.kv_max for request in rows]
            if self._has_drafts
            else [request.computed for request in rows],
            source=source,
            yields=self._yields(rows),
            score=[request.score for request in rows],
        )
        return StepPlan(
            step=step,
            rows=self._columns,
            host_ids=_host_ids(rows, source),
            leave=changes.leave,
            admit=changes.admits,
            append=changes.appends(),
            tree=tree,
        )

    def write_steady(self, step: int, kv_max: list[int], changes: Changes | None) -> StepPlan:
        """Return the plan that gives every row of the last plan as many tokens again."""
        last = self._columns
        columns = Rows(last.slots, last.query_max, kv_max, last.source, last.yields, last.score)
        self._columns = columns
        append = NO_APPENDS if changes is None else changes.appends()
        return StepPlan(step, columns, NO_IDS, NO_SLOTS, NO_ADMITS, append, steady=True)

    def drawing(self) -> list[Request]:
        """Return the requests whose rows of the last plan draw, in its order."""
        columns = zip(self.rows, self._columns.yields, strict=True)
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

    def _yields(self, rows: Sequence[Request]) -> list[int]:
        if self._pools:
            return [
                request.yields if request.computed >= request.host_end else NOTHING
                for request in rows
            ]
        return [DRAW if request.computed >= request.host_end else NOTHING for request in rows]

    def _arrange(self, members: list[Request]) -> TreeNodes:
        size = self._page_tokens
        limits = [
            min(request.num_shared, (request.computed - request.query) // size)
            for request in members
        ]
        if self._has_drafts:
            # Drafts in flight may prove wrong: a row may begin before its bound.
            limits = [
                min(limit, request.begin_min // size)
                for limit, request in zip(limits, members, strict=True)
            ]
        order, tree = depth_first([request.pages for request in members], limits, size)
        self._members = members
        self.rows = [members[index] for index in order]
        return tree


def _host_ids(rows: Sequence[Request], source: Sequence[int]) -> list[int]:
    ids: list[int] = []
    for request, kind in zip(rows, source, strict=True):
        if kind == FROM_HOST:
            # A scored chunk that does not end the prompt brings the token after it, too.
            extra = 1 if request.score and request.computed < request.host_end else 0
            begin = request.computed - request.query
            ids += request.tokens(begin, request.computed + extra)
    return ids
