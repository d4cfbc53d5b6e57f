from __future__ import annotations

import gc

import pytest
import torch

from headstock.errors import UnsupportedError
from headstock.ops.linear import LinearSpec
from headstock.plugins.device import GraphKey
from headstock_xeon.kernels.layers import LayerKernels
from headstock_xeon.kernels.linear import NativeLinear
from headstock_xeon.kernels.steps import StepKernels

KEY = GraphKey("uniform", 3, 3, query=1)


def feed_forward(device, depth: int = 2):
    """Return a step over fixed buffers of some layers, its input and its output."""
    layers, steps = LayerKernels(device), StepKernels(device)
    spec = LinearSpec(in_features=64, out_features=128, dtype=torch.float32)
    weights = [NativeLinear(spec, device) for _ in range(depth)]
    for weight in weights:
        weight.load({"weight": torch.randn(128, 64) * 0.1}, 0)
    norm_D, x_TD, out_TD = torch.rand(64), torch.zeros(3, 64), torch.zeros(3, 64)

    def compute() -> torch.Tensor:
        hidden_TD = layers.rms_norm(x_TD, norm_D, eps=1e-6)
        for weight in weights:
            hidden_TD = layers.silu_and_mul(weight(hidden_TD))
        return hidden_TD

    return compute, lambda: steps.keep_rows(compute(), out_TD), x_TD, out_TD


def test_a_replay_has_the_bits_of_an_eager_step(device) -> None:
    compute, step, x_TD, out_TD = feed_forward(device)
    graph = device.capture(KEY, step)
    for _ in range(20):
        x_TD.normal_()
        graph.replay()
        assert torch.equal(out_TD, compute())


def test_a_step_of_native_ops_calls_no_pytorch(device) -> None:
    _, step, _, _ = feed_forward(device)
    graph = device.capture(KEY, step)
    assert graph.torch_calls == ()
    assert graph.num_instructions == 6


def test_pytorch_calls_in_between_are_repeated(device) -> None:
    _compute, _, x_TD, out_TD = feed_forward(device)
    weight_D = torch.rand(64)

    def step() -> None:
        hidden_TD = torch.relu(x_TD) + 1.0
        hidden_TD = LayerKernels(device).rms_norm(hidden_TD, weight_D, eps=1e-6)
        out_TD.copy_((hidden_TD * 2).flip(0))

    graph = device.capture(KEY, step)
    assert "relu" in graph.torch_calls
    for _ in range(5):
        x_TD.normal_()
        graph.replay()
        replayed = out_TD.clone()
        step()
        assert torch.equal(out_TD, replayed)


def test_the_memory_of_a_step_is_reused_by_the_next(device) -> None:
    _, step, _, _ = feed_forward(device, depth=8)
    device.capture(KEY, step)
    taken = device._arena.num_bytes
    for _ in range(20):
        _, step, _, _ = feed_forward(device, depth=8)
        device.capture(KEY, step)
    assert device._arena.num_bytes == taken


def test_a_result_that_outlives_its_capture_is_left_alone(device) -> None:
    compute, step, x_TD, _out_TD = feed_forward(device)
    kept = []
    graph = device.capture(KEY, lambda: kept.append(compute()))
    other = device.capture(KEY, step)
    x_TD.normal_()
    graph.replay()
    wanted = kept[0].clone()
    other.replay()
    assert torch.equal(kept[0], wanted)


def test_a_step_that_reads_a_value_is_refused(device) -> None:
    with pytest.raises(UnsupportedError, match="reads a value"):
        device.capture(KEY, lambda: torch.ones(3).sum().item())
    compute, step, _, out_TD = feed_forward(device)
    step()  # The device works on after a failed capture.
    assert torch.equal(out_TD, compute())


def test_graphs_keep_the_weights_that_they_need(device) -> None:
    _, step, x_TD, out_TD = feed_forward(device)
    x_TD.normal_()
    graph = device.capture(KEY, step)
    wanted = out_TD.clone()
    del step, _
    gc.collect()
    out_TD.zero_()
    graph.replay()
    assert torch.equal(out_TD, wanted)
