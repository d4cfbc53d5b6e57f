"""Pages in 8 bits: what they hold is the reference's, and attention over them too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triton_here import DTYPES, HAS_GPU, Here

from headstock.ops.attention import attention
from headstock.ops.cases.attention import (
    attend,
    dense_attention,
    filled_pages,
    make_inputs,
    plain_spec,
)
from headstock.ops.cases.batches import make_step
from headstock.ops.narrow_pages import NARROW
from headstock_triton.attention.provider import PagedAttention, Tuning

FP8 = torch.float8_e4m3fn
ROWS = [(1, 130), (1, 70), (9, 90), (1, 5), (6, 6)] if HAS_GPU else [(1, 37), (3, 20), (1, 5)]
FEATURES = [(), ("sliding_window", "sinks"), ("soft_cap",)]
CASES = [(kv_dtype, features) for kv_dtype in NARROW for features in FEATURES]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [16, 64] if HAS_GPU else [16])
@pytest.mark.parametrize(("kv_dtype", "features"), CASES if HAS_GPU else [CASES[0], CASES[4]])
def test_attention_over_narrow_pages_is_that_of_what_they_stand_for(
    dtype, page_size, kv_dtype, features
):
    window = 11 if "sliding_window" in features else None
    spec = replace(
        plain_spec(dtype, page_size),
        kv_dtype=kv_dtype,
        features=frozenset(features),
        window=window,
        soft_cap=2.0 if "soft_cap" in features else None,
    )
    step = make_step(ROWS, page_size, Here.torch_device, num_padding_rows=2, window=window)
    inputs = make_inputs(spec, step, Here.torch_device)
    provider = PagedAttention(spec, Here())
    kv = filled_pages(provider, step, inputs, spec.max_tokens)
    out = attend(provider, kv, step, inputs)[: step.num_real_tokens]
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (2e-2, 2e-2)
    right = dense_attention(spec, ROWS, inputs)
    torch.testing.assert_close(out.double(), right, rtol=rtol, atol=atol)


def test_rows_that_share_a_prefix_read_its_narrow_pages_once():
    rows, shared = [(1, 80)] * 3, [(0, 3, 64)]
    spec = replace(plain_spec(torch.float32, 16), kv_dtype=FP8)
    step = make_step(rows, 16, Here.torch_device, shared=shared)
    inputs = make_inputs(spec, step, Here.torch_device, shared=shared)
    provider = PagedAttention(spec, Here(), Tuning(min_gain=1, node_min_chunk=64))
    out = attend(provider, filled_pages(provider, step, inputs, 512), step, inputs)
    assert provider._totals.tolist()[1] > 0, "no node was read"
    right = dense_attention(spec, rows, inputs)
    torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-5)


def values(kv_dtype) -> torch.Tensor:
    """Return keys with every code, what lies between two and just beside the middle."""
    if kv_dtype == torch.int8:
        codes = torch.arange(128, dtype=torch.float32)
    else:
        codes = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    middle = (codes[1:] + codes[:-1]) / 2
    near = torch.cat((codes, middle, middle.nextafter(middle * 2), middle.nextafter(middle * 0)))
    near = torch.cat((near, -near))
    whole = torch.zeros(-(-len(near) // 63) * 63)
    whole[: len(near)] = near
    rows = whole.view(-1, 1, 63).expand(-1, 2, -1)
    return torch.cat((rows, torch.full_like(rows[..., :1], codes.max())), dim=-1).contiguous()


@pytest.mark.parametrize("kv_dtype", NARROW)
def test_narrow_pages_hold_what_the_reference_s_hold(kv_dtype):
    """To the bit: every code, ties, large and small scales, and zeros."""
    spec = replace(plain_spec(torch.float32, 16), kv_dtype=kv_dtype)
    k = values(kv_dtype)
    wide = torch.randn(40, 2, 64) * torch.logspace(-3, 3, 40)[:, None, None]
    wide[7] = 0
    k = torch.cat((k, wide)).to(Here.torch_device)
    step = make_step([(1, len(k))], 16, Here.torch_device)
    batch = replace(step.batch, write_slots_T=step.slots[0])
    found = []
    for provider in (PagedAttention(spec, Here()), attention.reference(spec, Here())):
        shape = provider.kv_shape(step.num_pages + 1)
        kv = torch.zeros(shape, dtype=provider.page_format.dtype, device=Here.torch_device)
        provider.write(k, -k, kv, batch)
        found.append(provider.read(kv, step.slots[0]))
    for ours, plain in zip(*found, strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("kv_dtype", NARROW)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_narrow_pages_do_not_hide_what_is_not_a_number(kv_dtype, bad):
    spec = replace(plain_spec(torch.float32, 16), kv_dtype=kv_dtype)
    step = make_step([(1, 20)], 16, Here.torch_device)
    inputs = make_inputs(spec, step, Here.torch_device)
    inputs.v_rows[0][3, 0, 5] = bad
    provider = PagedAttention(spec, Here())
    out = attend(provider, filled_pages(provider, step, inputs, 512), step, inputs)
    assert not out[0, 0].isfinite().all()
    assert out[0, -1].isfinite().all()
