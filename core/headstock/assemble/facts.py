"""What the start banner tells of the engine: lines of text, in the order they are shown."""

from __future__ import annotations

from headstock.assemble.compute import LoadedModel, Opened
from headstock.assemble.serving import Built
from headstock.graph.lora import AdapterSpace
from headstock.plugins.models import ChosenModel

GIB = 1 << 30


def describe(opened: Opened, built: Built) -> dict[str, str]:
    """Return name and text of each line."""
    limits = built.runner.limits
    dtype = str(built.loaded.ctx.dtype).removeprefix("torch.")
    facts = {
        "task": describe_task(built.loaded),
        "architecture": _architecture(built.loaded.chosen),
        "device": f"{opened.chosen.name}: {opened.device.name}",
        "compute": f"{dtype}, {_steps(limits.depth)}",
        "ops": f"{built.resolved.summary} (plan {built.resolved.fingerprint})",
        "attention": ", ".join(
            sorted({op.provider for op in built.resolved.ops if op.op == "attention"})
        ),
        "limits": (
            f"{limits.num_slots} requests at once, {limits.max_length:,} tokens each,"
            f" {limits.max_step_tokens:,} tokens a step"
        ),
    }
    if built.step:
        facts["whole steps"] = built.step
    adapters = built.loaded.ctx.adapters
    if adapters is not None:
        facts["adapters"] = _room(adapters.space)
    for name, size in built.memory.table():
        facts[f"memory: {name}"] = f"{size / GIB:.2f} GiB"
    for number, note in enumerate((*opened.chosen.notes, *opened.chosen.failures), 1):
        facts[f"note {number}"] = note
    return facts


def _room(space: AdapterSpace) -> str:
    """Return how much room for LoRA adapters there is, in words."""
    targets = "every linear layer" if space.targets is None else ", ".join(sorted(space.targets))
    return f"{space.num_places} at once, of rank {space.max_rank} at most, on {targets}"


def describe_task(loaded: LoadedModel) -> str:
    """Return what the model is served for, and what follows from that for steps."""
    model = loaded.model
    if "draw" in model.yields:
        return loaded.task.kind
    pooling = loaded.task.pooling
    how = "" if pooling is None else f", {pooling.kind} of hidden states"
    if pooling is not None and pooling.dense:
        how += f", {len(pooling.dense)} dense layers"
    if pooling is not None and pooling.is_normalized:
        how += ", normalised"
    parts = "in chunks, prefixes cached" if model.takes_chunks else "whole texts in one step"
    return f"{loaded.task.kind}{how}; {parts}; no output layer"


def _architecture(chosen: ChosenModel) -> str:
    if chosen.is_fallback:
        return f"{chosen.architecture}, by transformers' own class: no package has a file for it"
    return chosen.architecture


def _steps(depth: int) -> str:
    return "steps overlap with planning" if depth > 1 else "one step at a time"
