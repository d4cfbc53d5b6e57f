"""What a running program tells of itself."""

from __future__ import annotations

from typing import Any

import msgspec

from headstock.programs.graph import Value


class StepReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a gen or a select took. Times are since the program began. Seconds.

    Attributes:
        begin_s: When everything that it waited for was there.
        first_s: When its first token came; None: there was none to see.
        end_s: When it was done.
        queue_s: How long it waited in the engine's queue.
        cached_tokens: Prompt tokens that were computed before: shared with others, or earlier.
        finish_reason: Why a gen ended: ``stop``, ``length`` or ``abort``.
        matched: The stop string or token id that ended it.
        scores: Of each choice of a select; the largest won.
        logprobs: Of each choice of a select: its tokens'.
        output: Of each text of a gen that asked for logprobs: ``meta_info`` as of ``/generate``.
    """

    begin_s: float = 0.0
    first_s: float | None = None
    end_s: float = 0.0
    queue_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None
    matched: str | int | None = None
    scores: list[float] | None = None
    logprobs: list[list[float]] | None = None
    output: list[dict[str, Any]] | None = None


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta"):
    """A piece of the text of a gen with ``stream``.

    Attributes:
        step: The number of the step.
        index: Which of ``n`` texts.
    """

    step: str
    index: int
    text: str


class StepDone(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """A gen or a select is over.

    Attributes:
        texts: What it brought: ``n`` texts of a gen, or the choice.
        reasoning: What was cut out of each text; None: nothing was to be.
    """

    step: str
    state: str
    name: str
    texts: list[str]
    reasoning: list[str] | None = None
    report: StepReport

    @property
    def value(self) -> Value:
        """What its variable has."""
        return self.texts[0] if len(self.texts) == 1 else list(self.texts)


class ProgramUsage(msgspec.Struct, frozen=True):
    """Tokens of all steps together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


class ProgramEnd(msgspec.Struct, frozen=True, tag="done"):
    """The last event of a streamed program."""

    id: str
    usage: ProgramUsage


Event = Delta | StepDone
