"""The opened device keeps the promises that the runner builds on."""

from __future__ import annotations

import time

import pytest
import torch

from headstock.plugins.device import Device
from headstock.testing.target import Target

BLOCK_BYTES = 64 << 20
MOST_BLOCKS = 12
SETTLE_S = 0.5
"""How long a system may take to count memory that was taken."""


def test_it_has_a_name_and_a_depth(target: Target) -> None:
    assert target.device.name
    assert target.device.depth >= 1
    assert target.device.num_threads >= 1


def test_memory_figures_fit_together(target: Target) -> None:
    memory = target.device.memory()
    assert 0 < memory.free <= memory.total
    assert memory.peak >= 0


def test_free_memory_falls_while_memory_is_held(target: Target) -> None:
    """The cache is sized by it. Systems may count late, and others use memory meanwhile."""
    device, held = target.device, list[torch.Tensor]()
    size = min(device.memory().free // (2 * MOST_BLOCKS), BLOCK_BYTES)
    for _ in range(MOST_BLOCKS):
        before = device.memory().free
        held.append(device.empty((size,), torch.uint8).fill_(1))
        device.synchronize()
        if _falls(device, before - size // 2):
            return
    pytest.fail(
        f"memory().free is {device.memory().free}: it fell {MOST_BLOCKS} times by less than half"
        f" of the {size} bytes that were taken each time",
        pytrace=False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.uint8])
def test_memory_comes_in_the_shape_that_was_asked(target: Target, dtype: torch.dtype) -> None:
    taken = target.device.empty((3, 5), dtype)
    assert taken.shape == (3, 5)
    assert taken.dtype == dtype
    assert taken.device.type == target.device.torch_device.type
    assert taken.is_contiguous()


def test_host_buffers_are_zeroed_host_memory(target: Target) -> None:
    buffer = target.device.host_buffer((7,), torch.int32)
    assert buffer.device.type == "cpu"
    assert not buffer.any()


def test_a_fetched_tensor_arrives_as_it_was_when_asked_for(target: Target) -> None:
    device = target.device
    source = device.empty((1000,), torch.int32)
    source.copy_(torch.arange(1000, dtype=torch.int32))
    transfer = device.fetch(source, device.host_buffer((1000,), torch.int32))
    source.add_(1)
    assert torch.equal(transfer.wait(), torch.arange(1000, dtype=torch.int32))


def test_padded_steps_are_no_smaller_than_the_real_ones(target: Target) -> None:
    for num_tokens, num_rows, is_uniform in ((1, 1, True), (5, 5, True), (40, 3, False)):
        bucket = target.device.graph_policy.bucket(num_tokens, num_rows, is_uniform)
        assert bucket is None or (bucket[0] >= num_tokens and bucket[1] >= num_rows)


def test_every_step_captured_in_advance_is_its_own_bucket(target: Target) -> None:
    policy = target.device.graph_policy
    for num_tokens, num_rows, is_uniform in policy.warm_up(256, 32):
        assert policy.bucket(num_tokens, num_rows, is_uniform) == (num_tokens, num_rows)


def _falls(device: Device, limit: int) -> bool:
    """Whether free memory is under ``limit``, now or soon."""
    deadline = time.monotonic() + SETTLE_S
    while device.memory().free > limit:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
