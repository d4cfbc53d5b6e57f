"""What the interpreter needs of what generates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headstock.programs.branch import Branch
from headstock.programs.graph import Gen, Select

OnText = Callable[[int, str], None]
"""Called with pieces of text: which of ``n``, and the piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one step took; fields as in :class:`headstock.programs.events.StepReport`.

    Attributes:
        first_after_s: When the first token came, since the step was begun. Seconds.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    first_after_s: float | None = None
    finish_reason: str | None = None
    matched: str | int | None = None
    output: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """What a gen brought: its texts, and what they took.

    Attributes:
        reasoning: What was already cut out of each text; None: nothing was.
    """

    texts: list[str]
    usage: Usage = Usage()
    reasoning: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a select brought.

    Attributes:
        index: The choice that won.
        scores: Of each choice; empty where the model does not tell.
        logprobs: Of each choice's tokens; empty where the model does not tell.
    """

    index: int
    usage: Usage = Usage()
    scores: Sequence[float] = ()
    logprobs: Sequence[Sequence[float]] = field(default=())


class Model(Protocol):
    """Whoever generates: an engine, or an endpoint."""

    async def generate(self, state: Branch, step: Gen, on_text: OnText | None) -> Generated:
        """Go on from ``state``, which must not be changed.

        Args:
            state: Where to go on; its last turn is the assistant's, or it is a plain text.
            step: How.
            on_text: Called with the text as it comes; None: the end is enough.

        Raises:
            RequestError: It cannot be served; ``field`` is a field of the step.
        """
        ...

    async def select(self, state: Branch, step: Select) -> Chosen:
        """Return which choice goes on best from ``state``.

        Raises:
            RequestError: It cannot be served; ``field`` is a field of the step.
        """
        ...
