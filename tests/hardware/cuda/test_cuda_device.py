"""The CUDA device and captured attention. Skipped where there is no NVIDIA GPU."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available() or torch.version.hip is not None:
    pytest.skip("no NVIDIA GPU", allow_module_level=True)

from headstock.ops.attention import AttentionSpec
from headstock.ops.cases.attention import (
    AttentionInputs,
    attend,
    dense_attention,
    filled_pages,
    make_inputs,
)
from headstock.ops.cases.batches import make_step
from headstock.plugins.device import GraphKey
from headstock_cuda.device import CudaDevice
from headstock_triton.attention.provider import PagedAttention

KEY = GraphKey("uniform", 1, 1)


@pytest.fixture(scope="module")
def device():
    opened = CudaDevice(0)
    yield opened
    opened.close()


def test_fetch_brings_what_was_there_when_it_was_asked_for(device):
    source = device.empty((1 << 20,), torch.int32).fill_(7)
    into = device.host_buffer((1 << 20,), torch.int32)
    transfer = device.fetch(source, into)
    assert bool((transfer.wait() == 7).all())


def test_fetch_does_not_wait_for_what_is_queued_later(device):
    source = device.empty((4,), torch.int32).fill_(7)
    transfer = device.fetch(source, device.host_buffer((4,), torch.int32))
    later = torch.cuda.Event()
    torch.cuda._sleep(200_000_000)
    later.record()
    transfer.wait()
    assert not later.query()
    later.synchronize()


def test_a_graph_replays_the_step_on_new_contents(device):
    x, out = device.empty((256, 256), torch.bfloat16), device.empty((256, 256), torch.bfloat16)
    x.fill_(1)

    def step():
        out.copy_(x @ x)

    graph = device.capture(KEY, step)
    x.fill_(2)
    graph.replay()
    assert bool((out == 1024).all())


def test_capture_runs_the_step_once(device):
    count = device.empty((1,), torch.int64).zero_()

    def step():
        count.add_(1)

    device.capture(KEY, step)
    device.synchronize()
    assert count.item() == 1


def test_graphs_share_their_memory(device):
    def step():
        device.empty((1 << 26,), torch.uint8).fill_(1)

    device.capture(KEY, step)
    before = device.memory().free
    for _ in range(4):
        device.capture(KEY, step)
    assert before - device.memory().free < 1 << 26


def large_spec(dtype, **changes):
    values = {
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "dtype": dtype,
        "kv_dtype": dtype,
        "page_size": 64,
        "scale": 128**-0.5,
        "max_length": 8192,
        "max_rows": 64,
        "max_tokens": 4096,
    }
    return AttentionSpec(**(values | changes))


@pytest.mark.parametrize("heads", [(32, 8), (16, 8), (28, 4), (40, 8)])
@pytest.mark.parametrize("page_size", [16, 64, 128])
def test_attention_at_real_sizes(device, heads, page_size):
    spec = large_spec(
        torch.bfloat16, num_heads=heads[0], num_kv_heads=heads[1], page_size=page_size
    )
    rows = [(700, 700), (1, 2000), (333, 3000), (1, 5), (64, 2112), (1, 4097), (129, 129)]
    step = make_step(rows, page_size, device.torch_device, num_padding_rows=3)
    inputs = make_inputs(spec, step, device.torch_device)
    provider = PagedAttention(spec, device)
    out = attend(provider, filled_pages(provider, step, inputs, 4096), step, inputs)
    right = dense_attention(spec, rows, inputs)
    error = (out[: len(right)].double() - right).norm() / right.norm()
    assert error < 6e-3, error


def test_a_captured_tree_follows_rows_that_join_and_leave(device):
    spec = large_spec(torch.bfloat16, max_tokens=2048)
    first = [(1, 2048 + 30 + i) for i in range(16)]
    second = [(1, 1024 + 5 * i + 1) for i in range(12)]
    steps = [
        (first, [(0, 16, 2048)]),
        (second, [(0, 12, 1024)]),
        (first[:9], [(0, 9, 1024), (0, 5, 2048)]),
        (second, []),
    ]
    provider = PagedAttention(spec, device)
    made = []
    for rows, shared in steps:
        step = make_step(
            rows, 64, device.torch_device, shared=shared, num_padding_rows=16 - len(rows)
        )
        inputs = make_inputs(spec, step, device.torch_device, shared=shared)
        made.append((rows, step, inputs, filled_pages(provider, step, inputs, 2048)))
    num_pages = max(kv.shape[0] for *_, kv in made)
    kv = device.empty(provider.kv_shape(num_pages), torch.bfloat16).zero_()
    q = device.empty((16, 32, 128), torch.bfloat16).zero_()
    batch = _fixed_batch(made[0][1].batch, device)
    provider.plan(batch)
    out = device.empty((16, 32, 128), torch.bfloat16)

    def body():
        out.copy_(provider.run(q, kv, batch))

    graph = device.capture(KEY, body)
    for rows, step, inputs, pages in [*made, *reversed(made)]:
        _write_newest(provider, step, inputs, pages)
        kv.zero_()
        kv[: pages.shape[0]].copy_(pages)
        q.copy_(inputs.q_THD.nan_to_num())
        _refill(batch, step.batch)
        out.fill_(torch.nan)
        graph.replay()
        right = dense_attention(spec, rows, inputs)
        got = out[: len(right)].double()
        error = (got - right).norm() / right.norm()
        assert error < 6e-3, (len(rows), error)


def _write_newest(provider, step, inputs: AttentionInputs, pages):
    provider.plan(step.batch)
    keys = torch.stack([k[-1] for k in inputs.k_rows])
    values = torch.stack([v[-1] for v in inputs.v_rows])
    pad = (0, 0, 0, 0, 0, step.batch.num_tokens - keys.shape[0])
    keys, values = (torch.nn.functional.pad(x, pad) for x in (keys, values))
    provider.write(keys, values, pages, step.batch)


def _fixed_batch(batch, device):
    from dataclasses import replace

    table = torch.zeros(16, 64, dtype=torch.int32, device=device.torch_device)
    tree = torch.zeros(8, 4, dtype=torch.int32, device=device.torch_device)
    return replace(
        batch,
        max_kv=4096,
        page_table_RP=table,
        tree_N4=tree,
        query_starts_R1=batch.query_starts_R1.clone(),
        kv_lengths_R=batch.kv_lengths_R.clone(),
        counts=batch.counts.clone(),
    )


def _refill(fixed, batch):
    fixed.page_table_RP.zero_()
    fixed.page_table_RP[:, : batch.page_table_RP.shape[1]].copy_(batch.page_table_RP)
    fixed.query_starts_R1.copy_(batch.query_starts_R1)
    fixed.kv_lengths_R.copy_(batch.kv_lengths_R)
    fixed.counts.copy_(batch.counts)
    fixed.tree_N4.zero_()
    fixed.tree_N4[: batch.tree_N4.shape[0]].copy_(batch.tree_N4)
