"""The kernel for Hopper: rows with several queries, whatever their lengths. Skipped elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("no Hopper GPU", allow_module_level=True)

from headstock.ops.cases.attention import (
    attend,
    dense_attention,
    filled_pages,
    make_inputs,
    plain_spec,
)
from headstock.ops.cases.batches import make_step
from headstock_cuda.device import CudaDevice
from headstock_triton.attention.provider import PagedAttention, Tuning

ALWAYS = Tuning(hopper_tokens=1, hopper_length=1)
ROWS = [(100, 333), (1, 77), (300, 300), (65, 513), (64, 64), (3, 5), (2, 128), (130, 193)]
"""(queries, keys): whole tiles, cut ones, some that half a block sees; and a row that decodes."""


@pytest.fixture(scope="module")
def device():
    opened = CudaDevice(0)
    yield opened
    opened.close()


def outcome(device, rows, *, dtype=torch.bfloat16, page_size=64, tuning=ALWAYS, **changes):
    spec = replace(plain_spec(dtype, page_size), max_tokens=1024, max_rows=16, **changes)
    spec = replace(spec, scale=spec.head_dim**-0.5)
    step = make_step(rows, page_size, device.torch_device, num_padding_rows=2)
    inputs = make_inputs(spec, step, device.torch_device)
    provider = PagedAttention(spec, device, tuning)
    kv = filled_pages(provider, step, inputs, spec.max_tokens)
    out = attend(provider, kv, step, inputs)[: step.num_real_tokens]
    return provider, out.double(), dense_attention(spec, rows, inputs)


def error_of(out, right) -> float:
    return float((out - right).norm() / right.norm())


@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(32, 8), (16, 8), (4, 4), (32, 1)])
def test_it_equals_attention_in_float64(device, page_size, head_dim, num_heads, num_kv_heads):
    shape = {"head_dim": head_dim, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    provider, out, right = outcome(device, ROWS, page_size=page_size, **shape)
    assert provider._plan.is_hopper
    assert error_of(out, right) < 4e-3


def test_it_takes_float16(device):
    shape = {"head_dim": 128, "num_heads": 8, "num_kv_heads": 2}
    provider, out, right = outcome(device, ROWS, dtype=torch.float16, **shape)
    assert provider._plan.is_hopper
    assert error_of(out, right) < 1e-3


def test_short_steps_are_left_to_the_other_kernel(device):
    provider, _, _ = outcome(device, ROWS, tuning=Tuning(), head_dim=128)
    assert not provider._plan.is_hopper


def test_one_long_row(device):
    shape = {"head_dim": 128, "num_heads": 8, "num_kv_heads": 2, "max_length": 8192}
    provider, out, right = outcome(device, [(700, 5000)], **shape)
    assert provider._plan.is_hopper
    assert error_of(out, right) < 4e-3
