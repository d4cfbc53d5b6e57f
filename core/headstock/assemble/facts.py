"""What the start banner tells of the engine: lines of text, in the order they are shown."""

from __future__ import annotations

from headstock.assemble.compute import Opened
from headstock.assemble.serving import Built

GIB = 1 << 30


def describe(opened: Opened, built: Built) -> dict[str, str]:
    """Return name and text of each line."""
    limits = built.runner.limits
    dtype = str(built.loaded.ctx.dtype).removeprefix("torch.")
    facts = {
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
    for name, size in built.memory.table():
        facts[f"memory: {name}"] = f"{size / GIB:.2f} GiB"
    for number, note in enumerate((*opened.chosen.notes, *opened.chosen.failures), 1):
        facts[f"note {number}"] = note
    return facts


def _steps(depth: int) -> str:
    return "steps overlap with planning" if depth > 1 else "one step at a time"
