"""A model on its device, measured and ready to run steps, with its drafter and step provider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from headstock.assemble.backend import Opened
from headstock.assemble.model import LoadedModel, load_model
from headstock.assemble.progress import Report, meter
from headstock.checkpoint import ModelFiles
from headstock.config.exclusions import POOLING, SPECULATION, STATES, check_start
from headstock.errors import ConfigError, PluginError, did_you_mean
from headstock.graph.loader import weight_bytes
from headstock.graph.lora import AdaptedModel
from headstock.lora import AdaptedModules, AdapterLibrary
from headstock.observe.units import GIB
from headstock.ops.communication import Group, SingleRank
from headstock.ops.model_step import ModelStepSpec, StepProvider, model_step
from headstock.plugins.device import Memory
from headstock.plugins.drafters import DrafterRegistry
from headstock.plugins.models import ModelRegistry
from headstock.plugins.resolved import ResolvedPlan, resolved_plan
from headstock.runner.build import build_runner
from headstock.runner.memory import MemoryPlan
from headstock.runner.runner import TorchRunner
from headstock.runner.step import ModelParts, StepModel, describe_taken
from headstock.speculative.provider import Drafter, DrafterSpec, open_drafter
from headstock.wire.messages import Loading

TOO_LARGE = (
    "Run `headstock plan` to see what the model takes; use --quantization int8, a --tp-size of more"
    " devices, or a smaller model."
)
TOO_FULL = "Lower --memory-fraction, --chunked-prefill-size or --max-running-requests."
OFF = "none"
MOST_DRAFTS = 15
"""Tokens drafted a request and step, at most: what follows is hardly ever right."""
SWITCH_OFF = "Serve it with --speculation none."
PROVIDED = {"window": "windows", "state": "states"}
"""Kinds of page groups to the feature of a model that has one."""


@dataclass(frozen=True, slots=True)
class Built:
    """A runner, and what the banner says of it.

    Attributes:
        runner: Ready to run steps.
        loaded: The model.
        memory: Where the device's memory goes.
        resolved: Who computes what.
        shelf: Where LoRA adapters wait; None: the model has no room for any.
        step: Who takes over whole steps, and why not all of them; "": no provider offers to.
        is_taken: Whether a provider takes over any.
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
        report: Called with the progress.
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
    """Turn a device's lack of memory while starting into an error that the operator can act on.

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


def drafter_place(opened: Opened) -> str | None:
    """Return where the drafter that the settings ask for is; None: nothing is drafted.

    Raises:
        ConfigError: No plugin names it, or it is to draft too much.
    """
    name = opened.settings.speculation.speculation
    if name == OFF:
        return None
    registry = DrafterRegistry()
    opened.chosen.name_drafters(registry)
    place = registry.place(name)
    if place is None:
        known = ", ".join([*registry.names, OFF])
        raise ConfigError(
            f"speculation is {name!r}; there are {known}.{did_you_mean(name, registry.names)}",
            remedy="Choose one of these, or install the plugin that brings it.",
        )
    num_drafts = opened.settings.speculation.num_drafts
    if num_drafts > MOST_DRAFTS:
        raise ConfigError(
            f"num_drafts is {num_drafts}; at most {MOST_DRAFTS} tokens are drafted at once.",
            remedy=f"Set --num-drafts to {MOST_DRAFTS} or less.",
        )
    return place


def serving_drafter(opened: Opened, loaded: LoadedModel, place: str | None) -> Drafter | None:
    """Open the drafter at ``place`` for ``loaded``; None: nothing is drafted.

    Raises:
        ConfigError: The model excludes drafting.
        PluginError: The drafter cannot be imported.
    """
    if place is None:
        return None
    options = loaded.options
    has_states = any(group.kind == "state" for group in loaded.ctx.groups)
    traits = {STATES: has_states, POOLING: "draw" not in options.yields}
    check_start({SPECULATION}, [name for name, is_so in traits.items() if is_so], SWITCH_OFF)
    spec = DrafterSpec(
        num_drafts=options.max_drafts,
        num_slots=options.num_slots,
        max_length=options.max_length,
        vocab_size=options.vocab_size,
    )
    return open_drafter(place, spec, opened.resolver)


@dataclass(frozen=True, slots=True)
class ModelStep:
    """What serves a model's steps.

    Attributes:
        provider: Takes over what it covers; None: the layers compute all.
        text: Who computes what, and why, for the banner; "": no provider offers to.
    """

    provider: StepProvider | None
    text: str


def choose_model_step(
    opened: Opened, loaded: LoadedModel, config: Mapping[str, Any], *, num_ranks: int
) -> ModelStep:
    """Resolve ``model_step`` for a loaded model, and build the provider.

    Args:
        opened: The backend.
        loaded: The model.
        config: Of the model, in Hugging Face keys.
        num_ranks: Ranks that share it.

    Raises:
        ConfigError: ``--op model_step=NAME`` names no provider that offers it.
        UnsupportedError: It names one that refuses the model.
    """
    resolver = opened.resolver
    if not resolver.is_offered(model_step):
        return ModelStep(None, "")
    spec = _spec(loaded, config, num_ranks)
    build = resolver.resolve(model_step, spec.as_spec())
    resolution = next(r for r in reversed(resolver.resolutions) if r.op == model_step.name)
    if build is model_step.reference:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in resolution.passed_over)
        return ModelStep(None, f"the layers ({reasons or 'as --op says'})")
    provider, options = build(spec, opened.device), loaded.options
    text = describe_taken(
        resolution.provider,
        provider,
        num_rows=options.num_slots,
        step_tokens=options.max_step_tokens,
        num_drafts=options.max_drafts,
    )
    return ModelStep(provider, text)


def _spec(loaded: LoadedModel, config: Mapping[str, Any], num_ranks: int) -> ModelStepSpec:
    kinds = {group.kind for group in loaded.ctx.groups}
    features = {feature for kind, feature in PROVIDED.items() if kind in kinds}
    features |= {"several-ranks"} if num_ranks > 1 else set()
    features |= {"media"} if loaded.model.media is not None else set()
    return ModelStepSpec(
        architecture=loaded.chosen.architecture,
        config=config,
        dtype=loaded.ctx.dtype,
        model=loaded.model,
        layers=loaded.ctx.attention_layers,
        hidden_size=int(config["hidden_size"]),
        num_ranks=num_ranks,
        features=frozenset(features),
    )


def check_agreement(plan: ResolvedPlan, group: Group, device: torch.device) -> None:
    """Refuse to serve when the ranks would compute with different implementations.

    Raises:
        PluginError: They would.
    """
    if group.size == 1:
        return
    # As two words of 32 bits: a tensor has no unsigned 64-bit integers everywhere.
    words = [int(plan.fingerprint[:8], 16), int(plan.fingerprint[8:], 16)]
    own = torch.tensor([words], dtype=torch.int64, device=device)
    found = group.all_gather(own).view(group.size, 2).tolist()
    if any(pair != found[0] for pair in found):
        odd = [rank for rank, pair in enumerate(found) if pair != found[0]]
        raise PluginError(
            f"Ranks {odd} resolved other implementations of the model's ops than rank 0.",
            remedy="Install the same packages for every rank.",
        )
