"""From a loaded model to a runner: measure, plan the memory, allocate the pages."""

from __future__ import annotations

import torch

from headstock.graph.vision import MediaModel
from headstock.plugins.device import Device, Memory
from headstock.runner.groups import GroupSizes, group_sizes
from headstock.runner.media import media_limits
from headstock.runner.memory import Measured, MemoryPlan, plan_memory, run_profile
from headstock.runner.options import PaddedSizes, RunnerOptions
from headstock.runner.runner import TorchRunner
from headstock.runner.step import ModelParts
from headstock.wire.steps import RunnerLimits


def build_runner(
    device: Device,
    parts: ModelParts,
    *,
    options: RunnerOptions,
    sizes: PaddedSizes,
    before: Memory,
    weight_bytes: int,
) -> tuple[TorchRunner, MemoryPlan]:
    """Build the runner of a model whose weights are loaded.

    Runs a step or two on the model, to see what they take. All ranks call this.

    Args:
        device: Where.
        parts: The model, and what runs with it.
        options: Sizes and switches.
        sizes: As :func:`~headstock.runner.options.padded_sizes` gave them for ``options``.
        before: The device's memory before the model came.
        weight_bytes: Of the packed weights.

    Raises:
        ConfigError: The memory does not hold what is asked.
    """
    # Steps that pool are eager: their rows are many tokens each, so that launches hide behind them.
    captures = options.graphs and options.draws and parts.ranks.is_capturable
    captures = captures and _captures(device, options)
    pages = group_sizes(
        parts.layers,
        parts.groups,
        options.page_size,
        is_shared=device.facts.has_strided_pages,
    )

    @torch.inference_mode()  # as steps run: a device may be unable to view what was made otherwise
    def build(cache_tokens: int, *, captures: bool) -> TorchRunner:
        limits = _limits(device, options, pages, cache_tokens, parts.model.media)
        return TorchRunner(device, parts, limits=limits, sizes=sizes, captures=captures)

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
    plan = plan_memory(device, measured, options, parts.ranks)
    return build(plan.cache_tokens, captures=captures), plan


def _captures(device: Device, options: RunnerOptions) -> bool:
    """Whether the device captures steps of any size."""
    rows = options.num_slots
    return device.graph_policy.bucket(rows, rows, is_uniform=True) is not None


def _limits(
    device: Device,
    options: RunnerOptions,
    pages: GroupSizes,
    cache_tokens: int,
    media: MediaModel | None,
) -> RunnerLimits:
    overlap = device.depth > 1 if options.overlap is None else options.overlap
    return RunnerLimits(
        num_slots=options.num_slots,
        max_step_tokens=options.max_step_tokens,
        max_length=options.max_length,
        vocab_size=options.vocab_size,
        depth=max(2, device.depth) if overlap else 1,
        groups=list(pages.groups(cache_tokens, options)),
        max_drafts=options.max_drafts,
        num_adapters=options.num_adapters,
        yields=options.yields,
        is_causal=options.is_causal,
        media=None if media is None else media_limits(media, options.media_tokens),
    )
