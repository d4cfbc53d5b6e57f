"""Descriptors of pages, which must not keep pages that were given back."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from headstock_triton.attention.page_tiles import PageTiles


def lines(kv: Tensor) -> list[Tensor]:
    return [kv.view(-1, 8)]


@pytest.mark.parametrize("inference", [True, False])
def test_pages_are_described_once_and_go_with_their_layer(inference: bool) -> None:
    tiles = PageTiles()
    with torch.inference_mode(inference):
        kv = torch.zeros(4, 2, 8)
        first = tiles.get(kv, 16, lines)
        assert tiles.get(kv, 16, lines) is first
        assert tiles.get(kv, 32, lines) is not first
        assert first[0].data_ptr() == kv.data_ptr()
        gone = [weakref.ref(kv), weakref.ref(first[0])]
        del kv, first
    gc.collect()
    assert [tensor() for tensor in gone] == [None, None]
