"""A model on its device, measured and ready to run steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from headstock.assemble.compute import LoadedModel, Opened, load_model
from headstock.assemble.progress import Report, meter
from headstock.assemble.ranks import check_agreement
from headstock.checkpoint import ModelFiles
from headstock.errors import ConfigError
from headstock.graph.loader import weight_bytes
from headstock.ops.communication import Group, SingleRank
from headstock.plugins.device import Memory
from headstock.plugins.models import ModelRegistry
from headstock.plugins.resolved import ResolvedPlan, resolved_plan
from headstock.runner.build import build_runner
from headstock.runner.memory import GIB, MemoryPlan
from headstock.runner.runner import TorchRunner
from headstock.wire.messages import Loading

TOO_LARGE = (
    "Run `headstock plan` to see what the model takes; use --quantization int8, a --tp-size of more"
    " devices, or a smaller model."
)
TOO_FULL = "Lower --memory-fraction, --chunked-prefill-size or --max-running-requests."


@dataclass(frozen=True, slots=True)
class Built:
    """A runner, and what is to be told of it.

    Attributes:
        runner: Ready to run steps.
        loaded: The model.
        memory: Where the device's memory goes.
        resolved: Who computes what.
    """

    runner: TorchRunner
    loaded: LoadedModel
    memory: MemoryPlan
    resolved: ResolvedPlan


def build_serving_runner(
    opened: Opened,
    files: ModelFiles,
    report: Report,
    *,
    group: Group | None = None,
    registry: ModelRegistry | None = None,
) -> Built:
    """Load the model, measure it, allocate its pages and capture its first steps.

    Args:
        opened: The backend.
        files: The model's.
        report: Told of the progress.
        group: The ranks that share the model; just this one when not given.
        registry: Architectures; the installed ones when not given.

    Raises:
        HeadstockError: The model cannot be served here with these settings.
    """
    before = opened.device.memory()
    report(Loading(phase="weights"))
    with explained(before, "the weights were loaded", TOO_LARGE):
        loaded = load_model(opened, files, report, group=group, registry=registry)
    report(Loading(phase="memory plan"))
    with explained(before, "the largest steps were tried", TOO_FULL):
        runner, memory = build_runner(
            opened.device,
            loaded.model,
            loaded.ctx.attention_layers,
            opened.resolver,
            group or SingleRank(),
            groups=loaded.ctx.groups,
            options=loaded.options,
            sizes=loaded.sizes,
            dtype=loaded.ctx.dtype,
            before=before,
            weight_bytes=weight_bytes(loaded.model),
        )
        runner.warm_up(meter(report, "graphs", "steps"))
    resolved = resolved_plan(opened.chosen, opened.resolver.resolutions)
    check_agreement(resolved, group or SingleRank(), opened.device.torch_device)
    return Built(runner, loaded, memory, resolved)


@contextmanager
def explained(before: Memory, when: str, remedy: str) -> Iterator[None]:
    """Let a device that runs out of memory while starting be the operator's to set right.

    Raises:
        ConfigError: Instead of PyTorch's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"The device ran out of memory while {when}; {before.free / GIB:.2f} GiB of"
            f" {before.total / GIB:.2f} were free before.",
            remedy=remedy,
        ) from error
