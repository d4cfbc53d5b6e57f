"""How large page groups are: what each page takes, and how groups share one piece of memory.

Where a model has several groups (window layers beside full ones, states beside pages), what each
needs depends on the requests: a split that is fixed at the start fits one length only. So groups
whose pages lie alike take *slabs* of one arena as they need them. A page of a group holds all its
layers, so that a layer's pages lie ``stride`` apart; since the stride is a whole number of the
layer's own pages, providers see an ordinary buffer of pages and need no strides: only the numbers
in the page tables differ. See :mod:`headstock.runner.arena`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headstock.graph.context import Retention
from headstock.ops.attention import CachedLayer, CacheProvider, page_format_of
from headstock.runner.arena import layer_page_bytes, page_axis
from headstock.runner.options import RunnerOptions
from headstock.wire.steps import PageGroup

CHECKPOINT_TOKENS = 1024
"""Cached tokens for which there is memory for one kept state."""
ALIGNMENT = 128
"""Where pages begin in an arena. Bytes."""
SLAB_WASTE = 0.01
"""Part of a slab that may stay empty; the smallest slab that wastes no more is taken."""
MOST_SLAB_WASTE = 0.05
"""Part above which groups rather keep memory of their own."""
LARGEST_SLAB = 1024
"""Most pages of the smallest kind that a slab holds."""
_PAGES_OF = {"full": "pages", "window": "window pages", "state": "states"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSize:
    """A page group before it is known how many pages it gets.

    Attributes:
        retention: What it keeps of a request.
        page_tokens: Tokens a page holds; 1 where it holds a state.
        page_bytes: Bytes of a page over all the group's layers.
        layer_bytes: Bytes of a page of each layer, where an arena can hold them: all layers have
            the same, and their pages lie one after another. 0: it can't.
    """

    retention: Retention
    page_tokens: int
    page_bytes: int
    layer_bytes: int = 0

    def num_pages(self, cache_tokens: int, options: RunnerOptions, num_requests: int) -> int:
        """Return the pages that go with ``cache_tokens`` cached tokens of some running requests.

        A request keeps a window and what the step at hand adds to it; of states its own, one that
        it writes to, and now and then a checkpoint.
        """
        if self.retention.kind == "state":
            return 2 * num_requests + cache_tokens // CHECKPOINT_TOKENS
        if self.retention.kind == "window":
            kept = self.retention.window + 2 * self.page_tokens
            cache_tokens = min(cache_tokens, num_requests * kept + options.max_step_tokens)
        return -(-cache_tokens // self.page_tokens)


@dataclass(frozen=True, slots=True)
class Slab:
    """A piece of an arena, which one group has at a time.

    Attributes:
        num_bytes: Of it.
        pages: Pages that it holds, a group; 0: the group has memory of its own.
    """

    num_bytes: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupSizes:
    """The page groups of a model, and whether they share an arena.

    Attributes:
        sizes: Of each group.
        slab: How the arena is divided; None: each group has memory of its own.
    """

    sizes: tuple[GroupSize, ...]
    slab: Slab | None = None

    def groups(self, cache_tokens: int, options: RunnerOptions) -> tuple[PageGroup, ...]:
        """Return the page groups that together cache ``cache_tokens`` tokens.

        Memory of its own must do for the most requests there may be; slabs are counted for
        requests of the greatest length, and hold the more tokens the shorter requests are.
        """
        num_slabs = 1 + self._num_slabs(cache_tokens, options)
        return tuple(
            PageGroup(
                kind=size.retention.kind,
                page_tokens=size.page_tokens,
                page_bytes=self.slab.num_bytes // pages if self.slab and pages else size.page_bytes,
                num_pages=num_slabs * pages
                or 1 + size.num_pages(cache_tokens, options, options.num_slots),
                window=size.retention.window,
                slab_pages=pages,
            )
            for size, pages in self._with_slabs()
        )

    def num_bytes(self, cache_tokens: int, options: RunnerOptions) -> int:
        """Return the bytes that caching so many tokens takes."""
        return cache_bytes(self.groups(cache_tokens, options))

    def _num_slabs(self, cache_tokens: int, options: RunnerOptions) -> int:
        requests = min(options.num_slots, max(1, -(-cache_tokens // options.max_length)))
        return sum(
            -(-size.num_pages(cache_tokens, options, requests) // pages) + 1
            for size, pages in self._with_slabs()
            if pages
        )

    def _with_slabs(self) -> Iterator[tuple[GroupSize, int]]:
        pages = self.slab.pages if self.slab is not None else (0,) * len(self.sizes)
        return zip(self.sizes, pages, strict=True)


def group_sizes(
    layers: Sequence[CachedLayer],
    groups: Sequence[Retention],
    page_size: int,
    *,
    is_shared: bool,
) -> GroupSizes:
    """Return the size of each page group's pages.

    Args:
        layers: The model's layers that keep state.
        groups: What each group keeps.
        page_size: Tokens of a page.
        is_shared: Whether pages of a layer may lie apart, so that groups may share an arena.
    """
    sizes: list[GroupSize] = []
    for group, retention in enumerate(groups):
        providers = [layer.provider for layer in layers if layer.group == group]
        sizes.append(
            GroupSize(
                retention=retention,
                page_tokens=1 if retention.kind == "state" else page_size,
                page_bytes=sum(map(layer_page_bytes, providers)),
                layer_bytes=_common_bytes(providers),
            )
        )
    return GroupSizes(tuple(sizes), divide(sizes) if is_shared else None)


def cache_bytes(groups: Sequence[PageGroup]) -> int:
    """Return the bytes of all pages."""
    total = sum(group.page_bytes * (1 if group.slab_pages else group.num_pages) for group in groups)
    for group in groups:
        if group.slab_pages:  # the others that have slabs have the same ones
            return total + (group.num_pages - group.slab_pages) * group.page_bytes
    return total


def describe_pages(groups: Sequence[PageGroup]) -> str:
    """Say in words how many pages there are."""
    parts: list[str] = []
    shared = [group for group in groups if group.slab_pages]
    if shared:
        slab_pages = shared[0].slab_pages
        num_slabs = shared[0].num_pages // slab_pages - 1
        size = slab_pages * shared[0].page_bytes / (1 << 10)
        held = " or ".join(f"{group.slab_pages} {_PAGES_OF[group.kind]}" for group in shared)
        parts.append(f"{num_slabs:,} slabs of {size:,.0f} KiB, each {held}")
    parts += [
        f"{group.num_pages - 1:,} {_PAGES_OF[group.kind]}"
        for group in groups
        if not group.slab_pages
    ]
    return ", ".join(parts)


def requests_at_once(groups: Sequence[PageGroup], length: int, step_tokens: int) -> int:
    """Return how many requests of ``length`` tokens the pages hold together.

    Args:
        groups: The page groups.
        length: Of each request, prompt and output.
        step_tokens: Of the largest step, which a window keeps until it has run.
    """
    held = [_pages_held(group, length) for group in groups]
    step = [-(-step_tokens // group.page_tokens) if group.window else 0 for group in groups]
    low, high = 0, 1 + max(group.num_pages for group in groups)
    while high - low > 1:
        middle = (low + high) // 2
        needed = [middle * pages + more for pages, more in zip(held, step, strict=True)]
        low, high = (middle, high) if _hold(groups, needed) else (low, middle)
    return low


def divide(sizes: Sequence[GroupSize]) -> Slab | None:
    """Return the smallest slab that pages of every group fill well; None: there is none.

    A slab is a whole number of the smallest pages. What is left of it by larger ones is spread
    between them, by whole pages of a layer.
    """
    sharing = [size for size in sizes if size.layer_bytes]
    if len(sharing) < 2:
        return None
    unit = min(size.page_bytes for size in sharing)
    best, least_waste = None, MOST_SLAB_WASTE
    for count in range(1, LARGEST_SLAB + 1):
        num_bytes = count * unit
        pages = tuple(num_bytes // size.page_bytes if size.layer_bytes else 0 for size in sizes)
        fits = all(
            number and num_bytes % (number * size.layer_bytes) == 0
            for number, size in zip(pages, sizes, strict=True)
            if size.layer_bytes
        )
        waste = max(
            1 - number * size.page_bytes / num_bytes
            for number, size in zip(pages, sizes, strict=True)
            if size.layer_bytes
        )
        if fits and waste < least_waste:
            best, least_waste = Slab(num_bytes, pages), waste
            if waste <= SLAB_WASTE:
                break
    return best


def _common_bytes(providers: Sequence[CacheProvider]) -> int:
    """Return the bytes of a layer's page where an arena can hold them, else 0."""
    found = {layer_page_bytes(provider) for provider in providers}
    size = found.pop()
    is_apart = bool(found) or any(page_axis(p) or page_format_of(p).parts for p in providers)
    return 0 if is_apart or size % ALIGNMENT else size


def _pages_held(group: PageGroup, length: int) -> int:
    """Return the pages that a running request of ``length`` tokens has in ``group``."""
    if group.kind == "state":
        return 2
    pages = -(-length // group.page_tokens)
    if group.kind == "window":  # it need not begin where a page does
        return min(pages, 1 + -(-group.window // group.page_tokens))
    return pages


def _hold(groups: Sequence[PageGroup], needed: Sequence[int]) -> bool:
    num_slabs, slabs_used = 0, 0
    for group, count in zip(groups, needed, strict=True):
        if group.slab_pages:
            num_slabs = group.num_pages // group.slab_pages - 1
            slabs_used += -(-count // group.slab_pages)
        elif count > group.num_pages - 1:
            return False
    return slabs_used <= num_slabs
