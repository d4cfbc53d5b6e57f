"""What one request has of the cache: its page tables, and which of their pages others may find."""

from __future__ import annotations

from dataclasses import dataclass, field

from headstock.cache.tree import CachedPage, Node
from headstock.wire.steps import NULL_PAGE, STATE_IN, STATE_OUT


@dataclass(slots=True, eq=False)
class PageTable:
    """A request's pages in a group of tokens.

    Attributes:
        pages: Its page table; entries that a window has left behind are the null page.
        cached: Of the leading entries, where they are in the tree; None: not there, or left behind.
        first: Entries before it are left behind.
        has_twins: At some nodes that it holds, the tree has another page of the same tokens, which
            another request wrote at the same time; its own stays in its table.
    """

    pages: list[int] = field(default_factory=list[int])
    cached: list[CachedPage | None] = field(default_factory=list[CachedPage | None])
    first: int = 0
    has_twins: bool = False

    def private(self) -> list[int]:
        """Return its pages that are not in the tree."""
        cached, pages = self.cached, self.pages
        inside: list[int] = []
        for index in range(self.first, len(cached)):
            known = cached[index]
            if known is None or known.page != pages[index]:
                inside.append(pages[index])
        return inside + pages[max(self.first, len(cached)) :]


@dataclass(slots=True, eq=False)
class StateTable:
    """A request's pages in a ``state`` group.

    A step reads the state from one page and writes it to another, or the same. Where a checkpoint
    is read, or made, the two differ for one row: the *turns* after it make them equal again.

    Attributes:
        pages: What its next row reads from and writes to.
        source: The checkpoint that its next row reads; held.
        made: The checkpoint that its last row wrote; held.
        spare: The page that it writes to from then on.
    """

    pages: list[int]
    source: CachedPage | None = None
    made: CachedPage | None = None
    spare: int = NULL_PAGE

    @property
    def is_turning(self) -> bool:
        """Whether its entries change before its next row."""
        return self.source is not None or self.made is not None

    def turn(self) -> tuple[list[int], CachedPage | None]:
        """Change the entries for the row after the one planned last.

        Returns:
            The entries that have changed, and the checkpoint that is read no more.
        """
        read, self.source, self.made = self.source, self.made, None
        if self.source is not None:
            self.pages = [self.source.page, self.spare]
            self.spare = NULL_PAGE
            return [STATE_IN, STATE_OUT], read
        self.pages = [self.pages[STATE_OUT]] * 2
        return [STATE_IN], read

    def private(self) -> list[int]:
        """Return its pages that are not in the tree."""
        return [self.spare if self.made is not None else self.pages[STATE_OUT]]

    def cached(self) -> list[CachedPage]:
        """Return the checkpoints that it holds."""
        return [cached for cached in (self.source, self.made) if cached is not None]


@dataclass(slots=True, eq=False)
class Tables:
    """Everything that one request has of the cache.

    Attributes:
        tokens: Its table in each group of tokens.
        states: Its table in each ``state`` group.
        path: Nodes of its tokens, as far as they are known.
        published: Grains that have been offered to the tree, or came from it.
        num_shared: Leading entries that rows with the same prefix have in common.
        is_private: Its further pages do not enter the tree: what comes before was withdrawn, or
            nothing is shared.
    """

    tokens: list[PageTable]
    states: list[StateTable]
    path: list[Node] = field(default_factory=list[Node])
    published: int = 0
    num_shared: int = 0
    is_private: bool = False


NO_TABLES = Tables([], [])
"""What a request has that has no pages; never written to."""
