"""What a plan changes in the runner's slot table before the forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headstock.scheduler.request import Request
from headstock.wire.steps import Admit, PageAppends

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
