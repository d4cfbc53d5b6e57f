"""Which steps a step provider takes over, and which are left to the model's layers, and why."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.model_step import StepProvider, StepWidth
from headstock.runner.batch import StepShape

Forward = Callable[[Tensor, StepBatch], Tensor]


class TakenSteps:
    """Asks a provider once for each width.

    Args:
        provider: Offers to take steps over.
        layers: Computes the others.
    """

    def __init__(self, provider: StepProvider, layers: Forward) -> None:
        self._provider = provider
        self._layers = layers
        self._chosen: dict[StepWidth, Forward] = {}

    def of(self, shape: StepShape) -> Forward:
        """Return what computes a step of ``shape``."""
        width = StepWidth(
            shape.num_tokens,
            shape.num_rows,
            shape.max_query if shape.is_uniform else 0,
            has_adapters=shape.has_adapters,
            has_media=shape.has_media,
        )
        if width not in self._chosen:
            is_taken = self._provider.why_not(width) is None
            self._chosen[width] = self._provider.run if is_taken else self._layers
        return self._chosen[width]


def describe_taken(
    name: str, provider: StepProvider, *, num_rows: int, step_tokens: int, num_drafts: int
) -> str:
    """Return, in words, which steps ``provider`` takes over, and why not the others.

    Args:
        name: Of the provider.
        provider: Asked about the widths that serving meets most.
        num_rows: Requests at once.
        step_tokens: Tokens a step may have.
        num_drafts: Tokens drafted a row; 0: none.
    """
    widths = {
        "one decoding row": StepWidth(1, 1, 1),
        f"{num_rows} decoding rows": StepWidth(num_rows, num_rows, 1),
        "prompts": StepWidth(step_tokens, 1, 0),
    }
    if num_drafts:
        query = num_drafts + 1
        widths["verification"] = StepWidth(num_rows * query, num_rows, query)
    reasons = {what: provider.why_not(width) for what, width in widths.items()}
    taken = [what for what, reason in reasons.items() if reason is None]
    left = [f"{what} ({reason})" for what, reason in reasons.items() if reason is not None]
    text = f"{name} for {', '.join(taken)}" if taken else f"{name} for no step"
    return f"{text}; the layers for {', '.join(left)}" if left else text
