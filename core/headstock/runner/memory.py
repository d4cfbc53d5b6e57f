"""How many pages fit: the workspace is measured on the model itself, never guessed."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import torch

from headstock.errors import ConfigError
from headstock.observe.units import GIB
from headstock.ops.communication import Group
from headstock.plugins.device import Device, Memory
from headstock.runner.groups import GroupSizes, cache_bytes, describe_pages
from headstock.runner.media import MediaRows
from headstock.runner.options import RunnerOptions
from headstock.runner.rehearsal import largest_draft_plan, largest_plan
from headstock.runner.runner import TorchRunner
from headstock.runner.slots import OptionalTables
from headstock.wire.steps import PageGroup, StepPlan

HOST_CACHE_BYTES = 4 << 30
"""Most that pages take by default where device memory is the host's, which others need too."""

HOST_PART = 4
"""Where the host computes, one part in so many of the largest step is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where a rank's device memory goes. Bytes, but for the tokens.

    Attributes:
        total: What was free before the model came.
        weights: Packed weights.
        buffers: Tables of the model's layers and whatever else came with it.
        workspace: What the largest step and the runner's own buffers need.
        graphs: What captured steps keep.
        optional: Tables for penalties and biases, made when a request first has any.
        groups: The page groups.
        cache_tokens: Tokens that the cache holds.
    """

    total: int
    weights: int
    buffers: int
    workspace: int
    graphs: int
    optional: int
    groups: tuple[PageGroup, ...]
    cache_tokens: int

    @property
    def cache_bytes(self) -> int:
        """Bytes of all pages."""
        return cache_bytes(self.groups)

    @property
    def free(self) -> int:
        """What is left."""
        taken = self.weights + self.buffers + self.workspace + self.graphs + self.optional
        return max(0, self.total - taken - self.cache_bytes)

    def table(self) -> list[tuple[str, int]]:
        """Return (what, bytes), for people."""
        pages = describe_pages(self.groups)
        named = [
            ("weights", self.weights),
            ("buffers", self.buffers),
            ("workspace", self.workspace),
            ("graphs", self.graphs),
            ("penalties and biases, once used", self.optional),
            (f"KV cache, {self.cache_tokens:,} tokens in {pages}", self.cache_bytes),
            ("left free", self.free),
        ]
        return [(name, size) for name, size in named if size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a model was seen to need on a device. Bytes.

    Attributes:
        before: The device before the model came.
        weights: Packed weights.
        buffers: What else was taken before anything was run.
        workspace: Most that the largest step took, the runner's buffers included.
        graphs: Likewise of the largest step that is captured; 0 where none is.
        groups: The page groups.
    """

    before: Memory
    weights: int
    buffers: int
    workspace: int
    graphs: int
    groups: GroupSizes

    def tokens_in(self, room: int, options: RunnerOptions) -> int:
        """Return the most tokens, in whole pages, whose pages take ``room`` bytes at most."""
        unit = options.page_size
        most = max(0, room) // min(size.page_bytes for size in self.groups.sizes) + 1
        fits = range(most + 1)
        place = bisect.bisect_right(
            fits, max(0, room), key=lambda count: self.groups.num_bytes(count * unit, options)
        )
        return max(0, place - 1) * unit


def optional_bytes(options: RunnerOptions) -> int:
    """Return the bytes of the tables for penalties and biases, which drawing alone has."""
    return OptionalTables.num_bytes(options.num_slots, options.vocab_size) if options.draws else 0


def plan_memory(
    device: Device, measured: Measured, options: RunnerOptions, group: Group
) -> MemoryPlan:
    """Decide how much is cached: the least that any rank has room for.

    Raises:
        ConfigError: Not even one longest request fits, or ``cache_tokens`` do not.
    """
    optional = optional_bytes(options)
    is_host = device.facts.shares_host_memory
    sharing = group.size if is_host else 1  # ranks on one host draw on the same memory
    allowed = int(options.memory_fraction * measured.before.free) // sharing
    taken = measured.weights + measured.buffers + measured.workspace + measured.graphs + optional
    room = _least(measured.tokens_in(allowed - taken, options), group, device)
    tokens, unit = room, options.page_size
    if options.cache_tokens is not None:
        tokens = -(-options.cache_tokens // unit) * unit
    elif not options.is_causal:
        tokens = min(room, _in_flight(device, options))
    elif is_host:
        running = options.num_slots * options.max_pages * unit
        least = options.max_pages * unit
        default = measured.tokens_in(HOST_CACHE_BYTES, options)
        tokens = min(room, running, max(least, default))
    _check(tokens, room, measured, allowed, taken, options)
    return MemoryPlan(
        total=measured.before.free // sharing,
        weights=measured.weights,
        buffers=measured.buffers,
        workspace=measured.workspace,
        graphs=measured.graphs,
        optional=optional,
        groups=measured.groups.groups(tokens, options),
        cache_tokens=tokens,
    )


def _in_flight(device: Device, options: RunnerOptions) -> int:
    """Return the tokens to cache where nothing is kept past its step: those of steps in flight.

    Each row may leave a part of its last page empty.
    """
    overlap = device.depth > 1 if options.overlap is None else options.overlap
    depth = max(2, device.depth) if overlap else 1
    unit = options.page_size
    step = options.max_step_tokens + options.num_slots * (unit - 1)
    return -(-max(options.max_length, depth * step) // unit) * unit


def _least(tokens: int, group: Group, device: Device) -> int:
    """Return the least of the ranks' numbers."""
    if group.size == 1:
        return tokens
    own = torch.tensor([[tokens]], dtype=torch.int64, device=device.torch_device)
    return int(group.all_gather(own).min())


def _check(
    tokens: int, room: int, measured: Measured, allowed: int, taken: int, options: RunnerOptions
) -> None:
    """Refuse caches that do not fit, or that a longest request does not fit into."""
    if tokens > room:
        needed = measured.groups.num_bytes(tokens, options)
        raise ConfigError(
            f"cache_tokens is {options.cache_tokens:,}, which takes {needed / GIB:.2f} GiB; there"
            f" is room for {room:,} tokens: {allowed / GIB:.2f} GiB allowed, of which weights and"
            f" workspace take {taken / GIB:.2f}.",
            remedy=f"Set --cache-tokens to {room} at most, or raise --memory-fraction.",
        )
    if tokens < options.max_pages * options.page_size:
        size = sum(size.page_bytes for size in measured.groups.sizes)
        raise ConfigError(
            f"The cache holds {tokens:,} tokens, and the longest request has"
            f" {options.max_length:,}: {allowed / GIB:.2f} GiB are allowed, weights and workspace"
            f" take {taken / GIB:.2f}, a page of {options.page_size} tokens {size:,} bytes.",
            remedy=_remedy(tokens, room, options),
        )


def _remedy(holds: int, fits: int, options: RunnerOptions) -> str:
    """Say what helps when the cache holds ``holds`` tokens and could hold ``fits``."""
    if options.cache_tokens is not None and fits >= options.max_length:
        return f"Set --cache-tokens to {options.max_length} or more, --max-model-len to {holds}."
    if holds:
        return f"Set --max-model-len to {holds} or less, or raise --memory-fraction."
    return "Lower --chunked-prefill-size and --max-running-requests, or use a smaller model."


def run_profile(
    device: Device, build: Callable[[], TorchRunner], *, captures: bool, step_tokens: int
) -> tuple[int, int]:
    """Return the bytes that the largest step, and the largest captured one, take at their peak.

    Where the host computes, a start would wait most of a second for the largest step: a part of
    it is tried, and what that takes is scaled up, along with what does not grow with a step.

    Args:
        device: Where.
        build: Makes a runner with next to no pages, whose own buffers count too.
        captures: Whether there will be captured steps.
        step_tokens: Of the largest step.
    """
    device.synchronize()
    device.reset_peak()
    start = device.memory().peak
    runner = build()
    limits = runner.limits
    is_host = device.facts.shares_host_memory
    tried = max(1, step_tokens // HOST_PART) if is_host else step_tokens
    peak = _peak_of(device, runner, largest_plan(limits, tried, 0))
    if limits.max_drafts:
        peak = max(peak, _peak_of(device, runner, largest_draft_plan(limits, 1)))
    fixed = 0 if runner.media is None else runner.media.num_bytes
    if runner.media is not None and not is_host:
        peak = max(peak, _peak_of_images(device, runner.media))
    workspace = fixed - (fixed + start - peak) * step_tokens // tried
    if not captures:
        return max(0, workspace), 0
    device.reset_peak()
    start = device.memory().peak
    plan = largest_plan(limits, limits.num_slots, 2)
    return max(0, workspace), max(0, _peak_of(device, runner, plan) - start)


def _peak_of_images(device: Device, media: MediaRows) -> int:
    with torch.inference_mode():
        media.rehearse()
    device.synchronize()
    return device.memory().peak


def _peak_of(device: Device, runner: TorchRunner, plan: StepPlan) -> int:
    runner.result(runner.launch(plan))
    device.synchronize()
    return device.memory().peak
