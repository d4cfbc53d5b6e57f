"""Page formats whose buffer holds several tensors, one after another; their pages go together."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from headstock.graph.context import Retention
from headstock.ops.attention import PageFormat
from headstock.plugins.host import HostDevice
from headstock.runner.arena import PageNumbers, layer_page_bytes
from headstock.runner.groups import group_sizes
from headstock.runner.pages import PageStore
from headstock.runner.upload import HostArrays
from headstock.wire.steps import PageCopies, PageGroup

PAGES, TOKENS, PARTS = 5, 16, (6, 2)


class Provider:
    """Two tensors of 6 and 2 features a token."""

    page_format = PageFormat(tag="parts", page_sizes=(TOKENS,), dtype=torch.float32, parts=PARTS)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        return (num_pages, TOKENS, sum(PARTS))


def test_parts_lie_one_behind_the_other_without_gaps() -> None:
    kv = torch.arange(PAGES * TOKENS * 8).view(PAGES, TOKENS, 8)
    wide, narrow = Provider.page_format.tensors_of(kv)
    assert wide.shape == (PAGES, TOKENS, 6)
    assert narrow.shape == (PAGES, TOKENS, 2)
    assert wide.is_contiguous()
    assert narrow.is_contiguous()
    assert torch.equal(torch.cat((wide.flatten(), narrow.flatten())), kv.flatten())


def test_a_page_is_cleared_and_copied_in_each_part() -> None:
    layer = SimpleNamespace(group=0, provider=Provider(), kv=None)
    group = PageGroup("full", TOKENS, TOKENS * 8 * 4, PAGES)
    device = HostDevice()
    numbers = PageNumbers([layer], [group])
    store = PageStore(device, HostArrays(device), [layer], [group], numbers)
    wide, narrow = layer.provider.page_format.tensors_of(layer.kv)
    assert not wide[0].any()
    assert not narrow[0].any()
    for page in range(PAGES):
        wide[page], narrow[page] = page, -page
    store.copy(PageCopies([0], [3], [1]))
    assert wide[:, 0, 0].tolist() == [0, 3, 2, 3, 4]
    assert narrow[:, 0, 0].tolist() == [0, -3, -2, -3, -4]


def test_a_provider_of_before_2_3_has_its_page_format_as_its_layout() -> None:
    kept = Provider.page_format
    older = SimpleNamespace(layout=kept, kv_shape=Provider().kv_shape)
    layer = SimpleNamespace(group=0, provider=older, kv=None)
    group = PageGroup("full", TOKENS, layer_page_bytes(older), PAGES)
    device = HostDevice()
    PageStore(device, HostArrays(device), [layer], [group], PageNumbers([layer], [group]))
    assert layer.kv.shape == (PAGES, TOKENS, sum(PARTS))
    assert layer.kv.dtype == kept.dtype


def test_such_a_group_shares_no_arena() -> None:
    layers = [SimpleNamespace(group=group, provider=Provider(), kv=None) for group in (0, 1)]
    kinds = [Retention("full"), Retention("window", 1024)]
    assert group_sizes(layers, kinds, TOKENS, is_shared=True).slab is None
    for layer in layers:
        layer.provider.page_format = PageFormat(
            tag="one", page_sizes=(TOKENS,), dtype=torch.float32
        )
    assert group_sizes(layers, kinds, TOKENS, is_shared=True).slab is not None
