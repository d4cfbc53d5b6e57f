"""Groups that share one piece of memory: how it is divided, and that no two pages overlap."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headstock.graph.context import Retention
from headstock.ops.attention import PageFormat
from headstock.plugins.host import HostDevice
from headstock.runner.arena import PageNumbers
from headstock.runner.groups import GroupSizes, cache_bytes, divide, group_sizes, requests_at_once
from headstock.runner.options import RunnerOptions
from headstock.runner.pages import PageStore
from headstock.runner.upload import HostArrays
from headstock.wire.steps import PageCopies

GIB = 1 << 30
FULL, WINDOW, STATE = Retention("full"), Retention("window", 1024), Retention("state")
OPTIONS = RunnerOptions(
    num_slots=256,
    max_step_tokens=8192,
    max_length=131072,
    vocab_size=1000,
    page_size=16,
)


class Provider:
    """Pages of so many numbers; along another axis than the first if ``is_odd``."""

    def __init__(self, size: int, dtype: torch.dtype = torch.float32, *, is_odd: bool = False):
        self.size, self.is_odd = size, is_odd
        self.page_format = PageFormat(tag="plain", page_sizes=(16,), dtype=dtype)

    def kv_shape(self, num_pages):
        return (2, num_pages, self.size) if self.is_odd else (num_pages, self.size)


def layers(*numbers_of_group, dtypes=(torch.float32, torch.bfloat16, torch.float32)):
    """Return layers, each with (group, numbers a page), one after another in turn."""
    return [
        SimpleNamespace(group=group, provider=Provider(size, dtypes[group]), kv=None)
        for group, size in numbers_of_group
    ]


def sizes(given, groups, **changes):
    return group_sizes(given, groups, 16, **{"is_shared": True, **changes})


def test_layers_of_one_size_waste_nothing():
    """Gemma 3 27B: 52 window layers, 10 full ones, all alike: 260 layers' pages fit both."""
    found = sizes(layers(*[(0, 64)] * 10, *[(1, 128)] * 52), [FULL, WINDOW])
    assert found.slab.pages == (26, 5)
    assert found.slab.num_bytes == 260 * 256


def test_a_state_may_be_larger_than_many_pages():
    found = sizes(layers(*[(0, 64)] * 12, *[(1, 128 * 67)] * 36), [FULL, STATE])
    full, state = found.slab.pages
    assert state == 1
    assert found.slab.num_bytes == 36 * 256 * 67 == full * 12 * 256


@pytest.mark.parametrize(
    ("given", "groups", "is_shared"),
    [
        (layers((0, 64), (0, 64)), [FULL], True),  # nobody to share with
        (layers((0, 64), (1, 128)), [FULL, WINDOW], False),  # the device cannot
        (layers((0, 64), (1, 128), (1, 256)), [FULL, WINDOW], True),  # layers differ
        (layers((0, 64), (1, 12)), [FULL, WINDOW], True),  # pages would not be aligned
        (layers((0, 32 * 8191), (1, 64 * 8179)), [FULL, WINDOW], True),  # no slab fills well
    ],
)
def test_groups_that_cannot_share_have_memory_of_their_own(given, groups, is_shared):
    assert sizes(given, groups, is_shared=is_shared).slab is None


def test_pages_along_another_axis_are_not_shared():
    given = layers((0, 64), (1, 128))
    given[0].provider = Provider(64, is_odd=True)
    assert sizes(given, [FULL, WINDOW]).slab is None


def test_slabs_take_no_more_than_they_may():
    found = sizes(layers(*[(0, 64)] * 10, *[(1, 128)] * 52), [FULL, WINDOW])
    for tokens in (0, 16, 4096, 1 << 20):
        groups = found.groups(tokens, OPTIONS)
        assert cache_bytes(groups) == found.num_bytes(tokens, OPTIONS)
        assert len({group.num_pages // group.slab_pages for group in groups}) == 1


@pytest.mark.parametrize(("length", "share"), [(8192, 0.9), (32768, 0.9), (2048, 0.9)])
def test_gemma_holds_what_its_windows_make_possible(length, share):
    """16 heads of 128, keys and values in bfloat16: 8 KiB a token and layer."""
    numbers = 16 * 8192 // 2
    dtypes = (torch.bfloat16, torch.bfloat16)
    given = layers(*[(0, numbers)] * 10, *[(1, numbers)] * 52, dtypes=dtypes)
    found = sizes(given, [FULL, WINDOW])
    room = 20 * GIB
    tokens = max(n for n in range(0, 200_000, 512) if found.num_bytes(n, OPTIONS) <= room)
    groups = found.groups(tokens, OPTIONS)
    request = 8192 * (10 * length + 52 * min(length, 1024))
    step = 8192 * 52 * OPTIONS.max_step_tokens  # what a chunk that is computed needs besides
    held = requests_at_once(groups, length, OPTIONS.max_step_tokens)
    assert held >= share * ((room - step) // request)
    assert held * request <= room


def stores(numbers_of_group, kinds, num_slabs):
    given = layers(*numbers_of_group)
    found = sizes(given, kinds)
    assert found.slab is not None
    groups = [
        group.__class__(
            group.kind,
            group.page_tokens,
            group.page_bytes,
            num_slabs * group.slab_pages,
            group.window,
            group.slab_pages,
        )
        for group in found.groups(16, OPTIONS)
    ]
    device = HostDevice()
    numbers = PageNumbers(given, groups)
    arrays = HostArrays(device)
    return given, groups, numbers, PageStore(device, arrays, given, groups, numbers)


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ([(0, 64), (1, 128), (0, 64), (1, 128), (1, 128)], [FULL, WINDOW]),
        ([(0, 64), (1, 192), (2, 32 * 7)], [FULL, WINDOW, STATE]),
        ([(1, 64), (0, 64 * 9)], [STATE, FULL]),
    ],
)
def test_no_two_pages_overlap(given, kinds):
    num_slabs = 7
    built, groups, numbers, _ = stores(given, kinds, num_slabs)
    owners = {slab: slab % len(groups) for slab in range(1, num_slabs)}
    written = []
    for index, group in enumerate(groups):
        pages = [0] + [
            slab * group.slab_pages + place
            for slab, owner in owners.items()
            if owner == index
            for place in range(group.slab_pages)
        ]
        entries = numbers.entries([index] * len(pages), pages)
        assert entries[0] == 0
        written += [
            (layer, int(entry), len(written) * 1000 + 7 * number + page)
            for number, layer in enumerate(built)
            if layer.group == index
            for page, entry in enumerate(entries)
        ]
    for number, (layer, entry, _) in enumerate(written):
        layer.kv[entry] = number % 250
    for number, (layer, entry, _) in enumerate(written):
        assert (layer.kv[entry] == number % 250).all()


def test_pages_are_copied_where_they_lie():
    built, groups, numbers, store = stores([(0, 64), (1, 128), (1, 128)], [FULL, WINDOW], 5)
    source, target = groups[1].slab_pages, 3 * groups[1].slab_pages
    of = numbers.entries([1, 1], [source, target])
    for layer in built[1:]:
        layer.kv[int(of[0])] = 3.0
    store.copy(PageCopies([1], [source], [target]))
    assert all((layer.kv[int(of[1])] == 3.0).all() for layer in built[1:])


def test_pages_of_their_own_keep_their_numbers():
    found = sizes(layers((0, 64)), [FULL])
    given = layers((0, 64))
    numbers = PageNumbers(given, found.groups(160, OPTIONS))
    assert numbers.is_plain
    assert (numbers.entries([], [5, 0, 9]) == np.array([5, 0, 9])).all()


def test_memory_of_its_own_is_counted_for_the_most_requests():
    found = GroupSizes(sizes(layers((0, 64), (1, 128)), [FULL, WINDOW]).sizes)
    full, window = found.groups(1 << 20, OPTIONS)
    assert full.num_pages == 1 + (1 << 16)
    assert window.num_pages == 1 + (256 * (1024 + 32) + 8192) // 16
    assert divide(found.sizes[:1]) is None
