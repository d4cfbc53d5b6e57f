"""From a loaded model to a runner: measure, plan the memory, allocate the pages."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headstock.ops.base import Resolver
from headstock.ops.communication import Group
from headstock.plugins.device import Device, Memory
from headstock.runner.memory import Measured, MemoryPlan, plan_memory, run_profile
from headstock.runner.options import PaddedSizes, RunnerOptions
from headstock.runner.pages import page_bytes
from headstock.runner.program import CachedLayer, StepModel
from headstock.runner.runner import TorchRunner
from headstock.wire.steps import PageGroup, RunnerLimits


def build_runner(
    device: Device,
    model: StepModel,
    layers: Sequence[CachedLayer],
    resolver: Resolver,
    group: Group,
    *,
    options: RunnerOptions,
    sizes: PaddedSizes,
    dtype: torch.dtype,
    before: Memory,
    weight_bytes: int,
) -> tuple[TorchRunner, MemoryPlan]:
    """Build the runner of a model whose weights are loaded.

    Runs a step or two on the model, to see what they take.

    Args:
        device: Where.
        model: What is computed.
        layers: Its attention layers.
        resolver: Chooses the ops around the model.
        group: The ranks that share the model; all of them call this.
        options: Sizes and switches.
        sizes: As :func:`~headstock.runner.options.padded_sizes` gave them for ``options``.
        dtype: Of the hidden states.
        before: The device's memory before the model came.
        weight_bytes: Of the packed weights.

    Raises:
        ConfigError: The memory does not hold what is asked.
    """
    captures = options.graphs and group.is_capturable and _captures(device, options)

    def build(num_pages: int, *, captures: bool) -> TorchRunner:
        return TorchRunner(
            device,
            model,
            layers,
            resolver,
            group,
            limits=_limits(device, options, num_pages, size),
            sizes=sizes,
            dtype=dtype,
            captures=captures,
        )

    size = page_bytes(layers)
    taken = before.free - device.memory().free
    is_host = device.torch_device.type == "cpu"  # where others take and free memory all the time
    workspace, graphs = run_profile(
        device,
        lambda: build(1, captures=False),
        captures=captures,
        step_tokens=options.max_step_tokens,
    )
    measured = Measured(
        before=before,
        weights=weight_bytes,
        buffers=0 if is_host else max(0, taken - weight_bytes),
        workspace=workspace,
        graphs=graphs,
        page_bytes=size,
    )
    plan = plan_memory(device, measured, options, group)
    return build(plan.num_pages, captures=captures), plan


def _captures(device: Device, options: RunnerOptions) -> bool:
    """Whether the device captures steps of any size."""
    rows = options.num_slots
    return device.graph_policy.bucket(rows, rows, is_uniform=True) is not None


def _limits(
    device: Device, options: RunnerOptions, num_pages: int, page_bytes: int
) -> RunnerLimits:
    overlap = device.depth > 1 if options.overlap is None else options.overlap
    return RunnerLimits(
        num_slots=options.num_slots,
        max_step_tokens=options.max_step_tokens,
        max_length=options.max_length,
        vocab_size=options.vocab_size,
        depth=max(2, device.depth) if overlap else 1,
        groups=[PageGroup("full", options.page_size, page_bytes, num_pages)],
    )
