"""A model on its device, measured and ready to run steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from headstock.assemble.compute import LoadedModel, Opened, load_model
from headstock.assemble.drafters import drafter_place, serving_drafter
from headstock.assemble.model_step import choose_model_step
from headstock.assemble.progress import Report, meter
from headstock.assemble.ranks import check_agreement
from headstock.checkpoint import ModelFiles
from headstock.errors import ConfigError
from headstock.graph.loader import weight_bytes
from headstock.graph.lora import AdaptedModel
from headstock.lora import AdaptedModules, AdapterLibrary
from headstock.ops.communication import Group, SingleRank
from headstock.plugins.device import Memory
from headstock.plugins.models import ModelRegistry
from headstock.plugins.resolved import ResolvedPlan, resolved_plan
from headstock.runner.build import build_runner
from headstock.runner.memory import GIB, MemoryPlan
from headstock.runner.runner import TorchRunner
from headstock.runner.step import ModelParts, StepModel
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
        shelf: Where LoRA adapters wait; None: the model has no room for any.
        step: Who takes over whole steps, and why not all of them; "": nobody offers to.
        is_taken: Whether somebody takes over any.
    """

    runner: TorchRunner
    loaded: LoadedModel
    memory: MemoryPlan
    resolved: ResolvedPlan
    shelf: AdapterLibrary | None
    step: str = ""
    is_taken: bool = False


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
    place = drafter_place(opened)  # before minutes go into loading
    before = opened.device.memory()
    report(Loading(phase="weights"))
    with explained(before, "the weights were loaded", TOO_LARGE):
        loaded = load_model(opened, files, report, group=group, registry=registry)
    shelf = make_shelf(loaded, opened)
    num_ranks = 1 if group is None else group.size
    step = choose_model_step(opened, loaded, files.config, num_ranks=num_ranks)
    drafter = serving_drafter(opened, loaded, place)
    report(Loading(phase="memory plan"))
    with explained(before, "the largest steps were tried", TOO_FULL):
        parts = ModelParts(
            model=as_stepped(loaded),
            layers=loaded.ctx.attention_layers,
            groups=loaded.ctx.groups,
            resolver=opened.resolver,
            ranks=group or SingleRank(),
            dtype=loaded.ctx.dtype,
            hidden_size=files.size("hidden_size"),
            adapters=shelf,
            drafter=drafter,
            step=step.provider,
        )
        runner, memory = build_runner(
            opened.device,
            parts,
            options=loaded.options,
            sizes=loaded.sizes,
            before=before,
            weight_bytes=weight_bytes(loaded.model),
        )
        runner.warm_up(meter(report, "graphs", "steps"))
    resolved = resolved_plan(opened.chosen, opened.resolver.resolutions)
    check_agreement(resolved, group or SingleRank(), opened.device.torch_device)
    return Built(runner, loaded, memory, resolved, shelf, step.text, step.provider is not None)


def as_stepped(loaded: LoadedModel) -> StepModel:
    """Return the model as the runner calls it."""
    adapters = loaded.ctx.adapters
    return loaded.model if adapters is None else AdaptedModel(loaded.model, adapters)


def make_shelf(loaded: LoadedModel, opened: Opened) -> AdapterLibrary | None:
    """Return where the LoRA adapters of a loaded model wait; None: it has no room for any."""
    adapters = loaded.ctx.adapters
    if adapters is None:
        return None
    modules = AdaptedModules(loaded.model, adapters.space, loaded.ctx.dtype)
    return AdapterLibrary(modules, opened.device, opened.settings.lora.max_loaded_loras)


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
