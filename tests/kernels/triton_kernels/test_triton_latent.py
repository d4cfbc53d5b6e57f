"""Rows of latent attention that are cut into items, and merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triton_here import Here

from headstock.ops.cases.batches import make_step
from headstock.ops.cases.latent import (
    attend_latents,
    dense_latent_attention,
    filled_latent_pages,
    make_latent_inputs,
    plain_latent_spec,
)
from headstock_triton.latent.provider import LatentTuning, PagedLatentAttention

ROWS = {
    "one row in many": [(1, 300)],
    "items of several rows": [(1, 200), (1, 9), (1, 130)],
    "among blocks": [(1, 150), (3, 40), (1, 20), (2, 2)],
}


@pytest.mark.parametrize("label", ROWS)
@pytest.mark.parametrize("num_padding_rows", [0, 3])
def test_rows_cut_into_items_agree_with_float64(label: str, num_padding_rows: int) -> None:
    device, rows = Here(), ROWS[label]
    spec = replace(plain_latent_spec(torch.float32, 16), num_heads=3)
    # Five programs on one multiprocessor: rows are cut as they would be over many.
    tuning = LatentTuning(item=(16, 4, 1), block=(16, 4, 1), programs_per_sm=5, min_chunk=32)
    step = make_step(rows, 16, device.torch_device, num_padding_rows=num_padding_rows)
    inputs = make_latent_inputs(spec, step, device.torch_device)
    provider = PagedLatentAttention(spec, device, tuning)
    kv = filled_latent_pages(provider, step, inputs)
    got = attend_latents(provider, kv, step, inputs)[: step.num_real_tokens]
    assert int(provider._totals[0]) >= 5, "no row was cut"
    wanted = dense_latent_attention(spec, rows, inputs)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_padding_rows", [0, 3])
def test_chosen_tokens_are_cut_into_items(num_padding_rows: int) -> None:
    device, rows = Here(), [(1, 200), (1, 9), (2, 130)]
    spec = replace(plain_latent_spec(torch.float32, 16), num_heads=3, num_chosen=100)
    tuning = LatentTuning(item=(16, 4, 1), block=(16, 4, 1), programs_per_sm=30, min_chunk=16)
    step = make_step(rows, 16, device.torch_device, num_padding_rows=num_padding_rows)
    inputs = make_latent_inputs(spec, step, device.torch_device)
    provider = PagedLatentAttention(spec, device, tuning)
    kv = filled_latent_pages(provider, step, inputs)
    got = attend_latents(provider, kv, step, inputs)[: step.num_real_tokens]
    assert provider._partial_o.count_nonzero(), "no query was cut"
    wanted = dense_latent_attention(spec, rows, inputs)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)
