"""Attention by FlashAttention 4 and FlashInfer. Skipped without a Hopper card or the library."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available() or torch.version.hip is not None:
    pytest.skip("no NVIDIA GPU", allow_module_level=True)

from headstock.ops.attention import attention
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.attention import (
    attend,
    attention_cases,
    dense_attention,
    filled_pages,
    make_inputs,
    plain_spec,
)
from headstock.ops.cases.base import Bench
from headstock.ops.cases.batches import make_step
from headstock.plugins.device import GraphKey
from headstock_cuda import flash_attention, flashinfer, headstock_register_ops
from headstock_cuda.device import CudaDevice
from headstock_cuda.optional import FLASH_ATTENTION, FLASHINFER
from headstock_triton.attention.provider import PagedAttention

MODULES = {FLASH_ATTENTION: flash_attention, FLASHINFER: flashinfer}
MIXED = [(700, 700), (1, 2000), (333, 3000), (1, 5), (64, 2112), (1, 4097), (129, 129)]
DECODE = [(1, length) for length in (2000, 5, 64, 65, 4097, 1)]


@pytest.fixture(scope="module")
def device():
    opened = CudaDevice(0)
    yield opened
    opened.close()


@pytest.fixture(params=MODULES, ids=[library.provider for library in MODULES])
def library(request, device):
    if not request.param.is_installed:
        pytest.skip(f"{request.param.module} is not installed")
    if "sm_90a" not in device.capabilities:
        pytest.skip(f"{device.name} is not a Hopper")
    return request.param


def build_flash(spec, device):
    """Build it so that it takes every row with several queries, however few."""
    from flash_attn.cute import flash_attn_varlen_func

    rows = flash_attention.FlashRows(spec, device, flash_attn_varlen_func, least_queries=1)
    sizes = flash_attention.PAGE_SIZES
    return PagedAttention(spec, device, queries=rows, page_sizes=sizes)


def build(library, spec, device):
    if library is FLASH_ATTENTION:
        return build_flash(spec, device)
    return flashinfer.build_flashinfer(spec, device)


def large_spec(**changes):
    plain = plain_spec(torch.bfloat16, 64)
    large = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "scale": 128**-0.5}
    limits = {"max_length": 8192, "max_rows": 64, "max_tokens": 4096}
    return replace(plain, **(large | limits | changes))


def test_the_ops_cases_pass_whoever_takes_the_rows(library, device):
    registry = OpRegistry()
    headstock_register_ops(registry, device)
    bench = Bench(
        resolver=Resolver(registry, device),
        dtype=torch.bfloat16,
        page_sizes=MODULES[library].PAGE_SIZES[:2],
    )
    rtol, atol = attention.tolerance.of("bfloat16")
    requires = MODULES[library].requirements("bfloat16")
    num_checked = 0
    for case in attention_cases(bench):
        if requires.reason_against(case.spec, device.capabilities) is not None:
            continue
        (got,) = case.outcome(lambda spec, device: build(library, spec, device))
        wanted = case.expected()
        torch.testing.assert_close(
            got[: case.num_real].double(),
            wanted.double(),
            rtol=rtol,
            atol=atol,
            msg=lambda text, label=case.label: f"{label}: {text}",
        )
        num_checked += 1
    assert num_checked > 10


@pytest.mark.parametrize("heads", [(32, 8), (16, 8)])
@pytest.mark.parametrize("rows", [MIXED, DECODE], ids=["mixed", "decode"])
def test_it_is_right_at_real_sizes(library, device, heads, rows):
    spec = large_spec(num_heads=heads[0], num_kv_heads=heads[1])
    step = make_step(rows, 64, device.torch_device, num_padding_rows=3)
    inputs = make_inputs(spec, step, device.torch_device)
    provider = build(library, spec, device)
    out = attend(provider, filled_pages(provider, step, inputs, 4096), step, inputs)
    right = dense_attention(spec, rows, inputs)
    error = (out[: len(right)].double() - right).norm() / right.norm()
    assert error < 6e-3, error


def test_a_captured_decode_step_follows_lengths(library, device):
    spec = large_spec()
    step = make_step([(1, 4000)] * 12, 64, device.torch_device, num_padding_rows=4)
    inputs = make_inputs(spec, step, device.torch_device)
    provider = build(library, spec, device)
    ours = PagedAttention(spec, device)
    kv = filled_pages(provider, step, inputs, 4096).nan_to_num()
    provider.plan(step.batch)
    out = torch.empty_like(inputs.q_THD)

    def body():
        out.copy_(provider.run(inputs.q_THD, kv, step.batch))

    graph = device.capture(GraphKey("uniform", 16, 16), body)
    for length in (1, 63, 64, 900, 4000):
        step.batch.kv_lengths_R[:12] = torch.arange(length, length - 12, -1).clamp(min=1)
        graph.replay()
        ours.plan(step.batch)
        right = ours.run(inputs.q_THD, kv, step.batch)[:12].float()
        error = (out[:12].float() - right).norm() / right.norm()
        assert error < 6e-3, (length, error)


def test_only_one_flash_kernel_is_compiled_for_all_steps(device):
    if not FLASH_ATTENTION.is_installed or "sm_90a" not in device.capabilities:
        pytest.skip("no FlashAttention 4, or no Hopper")
    from flash_attn.cute import interface

    spec = large_spec(max_rows=256)
    provider = build_flash(spec, device)
    kernels = interface._flash_attn_fwd.compile_cache.cache
    step = make_step([(1, 1)], 64, device.torch_device)
    provider.plan(step.batch)
    num_kernels = len(kernels)
    for rows in ([(4096, 4096)], [(5, 9)] * 256, [(2, 2), (1, 100)], MIXED):
        step = make_step(rows, 64, device.torch_device)
        inputs = make_inputs(spec, step, device.torch_device)
        attend(provider, filled_pages(provider, step, inputs, 4096), step, inputs)
    assert len(kernels) == num_kernels
