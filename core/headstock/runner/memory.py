"""How many pages fit: the workspace is measured on the model itself, never guessed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from headstock.errors import ConfigError
from headstock.ops.communication import Group
from headstock.plugins.device import Device, Memory
from headstock.runner.extras import Extras
from headstock.runner.options import RunnerOptions
from headstock.runner.profile import profile_plan
from headstock.runner.runner import TorchRunner
from headstock.wire.steps import StepPlan

HOST_CACHE_BYTES = 4 << 30
"""Most that pages take by default where device memory is the host's, which others need too."""

HOST_PART = 4
"""Where the host computes, one part in so many of the largest step is tried."""

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where a rank's device memory goes. Bytes, but for the page counts.

    Attributes:
        total: What was free before the model came.
        weights: Packed weights.
        buffers: Tables of the model's layers and whatever else came with it.
        workspace: What the largest step and the runner's own buffers need.
        graphs: What captured steps keep.
        extras: Tables for penalties and biases, made when a request first has any.
        page_bytes: A page over all layers.
        page_tokens: Tokens a page holds.
        num_pages: Pages, the null page included.
    """

    total: int
    weights: int
    buffers: int
    workspace: int
    graphs: int
    extras: int
    page_bytes: int
    page_tokens: int
    num_pages: int

    @property
    def cache_bytes(self) -> int:
        """Bytes of all pages."""
        return self.num_pages * self.page_bytes

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache holds."""
        return (self.num_pages - 1) * self.page_tokens

    @property
    def free(self) -> int:
        """What is left."""
        taken = self.weights + self.buffers + self.workspace + self.graphs + self.extras
        return max(0, self.total - taken - self.cache_bytes)

    def table(self) -> list[tuple[str, int]]:
        """Return (what, bytes), for people."""
        cache = f"KV cache, {self.cache_tokens:,} tokens in {self.num_pages - 1:,} pages"
        named = [
            ("weights", self.weights),
            ("buffers", self.buffers),
            ("workspace", self.workspace),
            ("graphs", self.graphs),
            ("penalties and biases, once used", self.extras),
            (cache, self.cache_bytes),
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
        page_bytes: A page over all layers.
    """

    before: Memory
    weights: int
    buffers: int
    workspace: int
    graphs: int
    page_bytes: int


def plan_memory(
    device: Device, measured: Measured, options: RunnerOptions, group: Group
) -> MemoryPlan:
    """Decide how many pages there are: the fewest that any rank has room for.

    Raises:
        ConfigError: Not even one longest request fits, or ``cache_tokens`` do not.
    """
    extras = Extras.num_bytes(options.num_slots, options.vocab_size)
    is_host = device.torch_device.type == "cpu"
    sharing = group.size if is_host else 1  # ranks on one host draw on the same memory
    allowed = int(options.memory_fraction * measured.before.free) // sharing
    taken = measured.weights + measured.buffers + measured.workspace + measured.graphs + extras
    room = _least(max(0, allowed - taken) // measured.page_bytes, group, device)
    num_pages = room
    if options.cache_tokens is not None:
        num_pages = -(-options.cache_tokens // options.page_size) + 1
    elif is_host:
        running = options.num_slots * options.max_pages + 1
        least = options.max_pages + 1
        num_pages = min(room, running, max(least, HOST_CACHE_BYTES // measured.page_bytes))
    _check(num_pages, room, measured.page_bytes, allowed, taken, options)
    return MemoryPlan(
        total=measured.before.free // sharing,
        weights=measured.weights,
        buffers=measured.buffers,
        workspace=measured.workspace,
        graphs=measured.graphs,
        extras=extras,
        page_bytes=measured.page_bytes,
        page_tokens=options.page_size,
        num_pages=num_pages,
    )


def _least(num_pages: int, group: Group, device: Device) -> int:
    """Return the least of the ranks' numbers."""
    if group.size == 1:
        return num_pages
    own = torch.tensor([[num_pages]], dtype=torch.int64, device=device.torch_device)
    return int(group.all_gather(own).min())


def _check(
    num_pages: int, room: int, page_bytes: int, allowed: int, taken: int, options: RunnerOptions
) -> None:
    """Refuse caches that do not fit, or that a longest request does not fit into."""
    fits = max(0, room - 1) * options.page_size
    if num_pages > room:
        raise ConfigError(
            f"cache_tokens is {options.cache_tokens:,}, which takes"
            f" {num_pages * page_bytes / GIB:.2f} GiB; there is room for {fits:,} tokens:"
            f" {allowed / GIB:.2f} GiB allowed, of which weights and workspace take"
            f" {taken / GIB:.2f}.",
            remedy=f"Set --cache-tokens to {fits} at most, or raise --memory-fraction.",
        )
    if num_pages < options.max_pages + 1:
        holds = max(0, num_pages - 1) * options.page_size
        raise ConfigError(
            f"The cache holds {holds:,} tokens, and the longest request has"
            f" {options.max_length:,}: {allowed / GIB:.2f} GiB are allowed, weights and workspace"
            f" take {taken / GIB:.2f}, a page of {options.page_size} tokens {page_bytes:,} bytes.",
            remedy=_remedy(holds, fits, options),
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
    is_host = device.torch_device.type == "cpu"
    tried = max(1, step_tokens // HOST_PART) if is_host else step_tokens
    workspace = _peak_of(device, runner, profile_plan(runner.limits, tried, 0)) - start
    workspace = -(-workspace * step_tokens // tried)
    if not captures:
        return max(0, workspace), 0
    device.reset_peak()
    start = device.memory().peak
    plan = profile_plan(runner.limits, runner.limits.num_slots, 1)
    return max(0, workspace), max(0, _peak_of(device, runner, plan) - start)


def _peak_of(device: Device, runner: TorchRunner, plan: StepPlan) -> int:
    runner.result(runner.launch(plan))
    device.synchronize()
    return device.memory().peak
