"""From a loaded model to a runner: measure, plan the memory, allocate the pages."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headstock.graph.context import Retention
from headstock.ops.base import Resolver
from headstock.ops.communication import Group
from headstock.plugins.device import Device, Memory
from headstock.runner.memory import (
    GroupSize,
    Measured,
    MemoryPlan,
    group_sizes,
    page_groups,
    plan_memory,
    run_profile,
)
from headstock.runner.options import PaddedSizes, RunnerOptions
from headstock.runner.runner import TorchRunner
from headstock.runner.step import CachedLayer, StepModel
from headstock.wire.steps import RunnerLimits


def build_runner(
    device: Device,
    model: StepModel,
    layers: Sequence[CachedLayer],
    resolver: Resolver,
    group: Group,
    *,
    groups: Sequence[Retention],
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
        layers: Its layers that keep state.
        resolver: Chooses the ops around the model.
        group: The ranks that share the model; all of them call this.
        groups: What each page group keeps.
        options: Sizes and switches.
        sizes: As :func:`~headstock.runner.options.padded_sizes` gave them for ``options``.
        dtype: Of the hidden states.
        before: The device's memory before the model came.
        weight_bytes: Of the packed weights.

    Raises:
        ConfigError: The memory does not hold what is asked.
    """
    captures = options.graphs and group.is_capturable and _captures(device, options)
    pages = group_sizes(layers, groups, options.page_size)

    def build(cache_tokens: int, *, captures: bool) -> TorchRunner:
        return TorchRunner(
            device,
            model,
            layers,
            resolver,
            group,
            limits=_limits(device, options, pages, cache_tokens),
            sizes=sizes,
            dtype=dtype,
            hidden_size=options.hidden_size,
            captures=captures,
        )

    taken = before.free - device.memory().free
    is_host = device.facts.shares_host_memory  # where others take and free memory all the time
    workspace, graphs = run_profile(
        device,
        lambda: build(0, captures=False),
        captures=captures,
        step_tokens=options.max_step_tokens,
    )
    measured = Measured(
        before=before,
        weights=weight_bytes,
        buffers=0 if is_host else max(0, taken - weight_bytes),
        workspace=workspace,
        graphs=graphs,
        groups=pages,
    )
    plan = plan_memory(device, measured, options, group)
    return build(plan.cache_tokens, captures=captures), plan


def _captures(device: Device, options: RunnerOptions) -> bool:
    """Whether the device captures steps of any size."""
    rows = options.num_slots
    return device.graph_policy.bucket(rows, rows, is_uniform=True) is not None


def _limits(
    device: Device, options: RunnerOptions, pages: Sequence[GroupSize], cache_tokens: int
) -> RunnerLimits:
    overlap = device.depth > 1 if options.overlap is None else options.overlap
    return RunnerLimits(
        num_slots=options.num_slots,
        max_step_tokens=options.max_step_tokens,
        max_length=options.max_length,
        vocab_size=options.vocab_size,
        depth=max(2, device.depth) if overlap else 1,
        groups=list(page_groups(pages, cache_tokens, options)),
        max_drafts=options.max_drafts,
        num_adapters=options.num_adapters,
    )
