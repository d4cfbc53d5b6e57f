"""Attention to entries and residual streams where several programs share a query, or a token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triton_here import Here

from headstock.ops import hyper_connections
from headstock.ops.cases.base import Draw
from headstock.ops.cases.compressed import compressed_case, plain_compressed_spec
from headstock_triton.compressed.provider import EntryAttention
from headstock_triton.hyper_connections import LEAST_SHARE, HyperConnections
from headstock_triton.target import Target

SHARING = Target(kind="cpu", num_sms=12)
"""Has more programs than a step has queries."""


class CountsItems(EntryAttention):
    """Keeps how many programs shared a query."""

    num_items = 0

    def _items(self, num_tokens: int, most: int) -> int:
        CountsItems.num_items = super()._items(num_tokens, most)
        return self.num_items


@pytest.mark.parametrize(("rate", "num_chosen"), [(0, 0), (4, 0), (4, 9), (32, 0)])
def test_programs_that_share_a_query_agree_with_float64(
    monkeypatch: pytest.MonkeyPatch, rate: int, num_chosen: int
) -> None:
    """Sinks count once, and what has nothing of a short query counts nothing."""
    monkeypatch.setattr(Target, "of", lambda device: SHARING)
    spec = plain_compressed_spec(torch.float32, 16)
    spec = replace(spec, num_heads=3, window=150, rate=rate, num_chosen=num_chosen)
    case = compressed_case("shared", spec, [(1, 200), (1, 3)], Here(), num_padding_rows=1)
    (got,), wanted = case.outcome(CountsItems), case.expected()
    assert CountsItems.num_items > 1
    torch.testing.assert_close(got[:2].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 17])
def test_programs_that_share_a_tokens_streams_agree_with_the_reference(num_tokens: int) -> None:
    draw, streams, size = Draw(Here.torch_device, seed=3), 3, 700
    width = streams * size
    assert width > 2 * LEAST_SHARE
    x_TC = draw.normal(num_tokens, width)
    mix_XC = draw.normal(streams * (2 + streams), width, scale=width**-0.5)
    args = (x_TC, mix_XC, draw.normal(len(mix_XC)), draw.uniform(3, low=0.5, high=1.5))
    options = {"num_streams": streams, "norm_eps": 1e-6, "eps": 1e-6, "num_rounds": 5}
    got = HyperConnections(SHARING).collapse_streams(*args, **options)
    wanted = hyper_connections.collapse_streams.reference(*args, **options)
    for ours, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
