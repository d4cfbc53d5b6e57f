"""What drafts: the interface that a plugin implements."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from headstock.errors import PluginError
from headstock.ops.base import Resolver


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterSpec:
    """What a drafter is opened for.

    Attributes:
        num_drafts: Tokens to draft a row and step: K.
        num_slots: Requests there can be at once.
        max_length: Tokens of the longest request: L.
        vocab_size: Ids there are.
    """

    num_drafts: int
    num_slots: int
    max_length: int
    vocab_size: int


class Drafter(Protocol):
    """Proposes what may follow, for all rows of a step at once.

    Shapes: S slots and the null slot; R rows of the step.
    """

    def draft(self, histories_SL: Tensor, slots_R: Tensor, known_R: Tensor) -> Tensor:
        """Return the drafts of each row, best guess first; negative past the last.

        Runs at the end of a step and may be captured: it queues work on the device, reads nothing
        of it, and makes the same calls whatever the tensors hold. Ranks that share a model must
        draft alike, and do if they draft from the arguments alone.

        Args:
            histories_SL: Tokens of each slot, prompt then outputs; past what is known anything.
                int32. [S, L]
            slots_R: Whose history each row's is. int32. [R]
            known_R: Tokens of it that are known; 0: the row wants no drafts. int32. [R]

        Returns:
            int32. [R, K]
        """
        ...


Open = Callable[[DrafterSpec, Resolver], Drafter]


def open_drafter(place: str, spec: DrafterSpec, resolver: Resolver) -> Drafter:
    """Import the drafter at ``place`` and open it.

    Raises:
        PluginError: It cannot be imported.
    """
    module, _, function = place.partition(":")
    try:
        opener: Open = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"Drafter {place} cannot be imported: {error}.",
            remedy="Install it again, or choose another by --speculation.",
        ) from error
    return opener(spec, resolver)
