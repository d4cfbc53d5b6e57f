"""Gated products on Hopper: many rows, where the gate joins the product. Skipped elsewhere."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("no Hopper GPU", allow_module_level=True)

from headstock.ops.linear import LinearSpec
from headstock_cuda.device import CudaDevice
from headstock_triton.dense import GATED_ROWS, DenseLinear


@pytest.fixture(scope="module")
def device():
    opened = CudaDevice(0)
    yield opened
    opened.close()


def outcome(device, num_rows, num_in, num_out, dtype=torch.bfloat16):
    """Return the provider, its gated product of random numbers, and what is right."""
    spec = LinearSpec(in_features=num_in, out_features=2 * num_out, dtype=dtype, is_gated=True)
    provider = DenseLinear(spec, device)
    generator = torch.Generator("cuda").manual_seed(1)
    weight = torch.randn(2 * num_out, num_in, device="cuda", generator=generator) * num_in**-0.5
    x = torch.randn(num_rows, num_in, device="cuda", generator=generator).to(dtype)
    provider.load({"weight": weight.to(dtype)}, 0)
    gate, up = (x.double() @ weight.to(dtype).double().T).chunk(2, dim=-1)
    return provider, provider(x).double(), torch.nn.functional.silu(gate) * up


def error_of(out, right) -> float:
    return float((out - right).norm() / right.norm())


@pytest.mark.parametrize("num_rows", [GATED_ROWS, 640, 1000, 4097])
@pytest.mark.parametrize(("num_in", "num_out"), [(1024, 3072), (4096, 1536), (64, 128)])
def test_it_equals_the_product_in_float64(device, num_rows, num_in, num_out):
    provider, out, right = outcome(device, num_rows, num_in, num_out)
    assert provider._hopper is not None
    assert error_of(out, right) < 4e-3


def test_it_takes_float16(device):
    provider, out, right = outcome(device, 1024, 1024, 1024, torch.float16)
    assert provider._hopper is not None
    assert error_of(out, right) < 1e-3


def test_sizes_that_its_tiles_do_not_divide_are_left_to_the_library(device):
    provider, out, right = outcome(device, 1024, 1024, 1000)
    assert provider._hopper is None
    assert error_of(out, right) < 8e-3


def test_few_rows_are_left_to_the_library(device):
    _, out, right = outcome(device, 3, 1024, 3072)
    assert error_of(out, right) < 8e-3
