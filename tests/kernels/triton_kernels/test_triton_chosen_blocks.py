"""Queries whose chosen blocks are cut into items, and merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triton_here import Here

from headstock.ops.attention import CHOSEN_BLOCKS
from headstock.ops.cases.attention import (
    attend,
    dense_attention,
    filled_pages,
    make_inputs,
    plain_spec,
)
from headstock.ops.cases.batches import make_step
from headstock_triton.attention import chosen
from headstock_triton.attention.chosen import BlockAttention


@pytest.mark.parametrize("num_padding_rows", [0, 3])
def test_chosen_blocks_are_cut_into_items(
    monkeypatch: pytest.MonkeyPatch, num_padding_rows: int
) -> None:
    device, rows = Here(), [(1, 150), (1, 9), (2, 90)]
    monkeypatch.setattr(chosen, "LEAST_TOKENS", 16)
    plain = plain_spec(torch.float32, 16)
    spec = replace(plain, features=frozenset({CHOSEN_BLOCKS}), block_size=16)
    step = make_step(rows, 16, device.torch_device, num_padding_rows=num_padding_rows)
    inputs = make_inputs(spec, step, device.torch_device)
    provider = BlockAttention(spec, device)
    provider._tail_spread = 24  # as many programs as a device would have room for
    kv = filled_pages(provider, step, inputs, spec.max_tokens)
    got = attend(provider, kv, step, inputs)[: step.num_real_tokens]
    assert provider._partial_o.count_nonzero(), "no query was cut"
    wanted = dense_attention(spec, rows, inputs)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)
