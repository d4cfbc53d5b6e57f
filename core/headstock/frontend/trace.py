"""What a program did and when: which step waited, what it shared. As JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headstock.frontend.errors import Line
from headstock.frontend.picture import draw
from headstock.programs import Fork, Gen, Join, Select, StepDone
from headstock.programs.graph import AnyStep


@dataclass(slots=True, kw_only=True)
class TraceStep:
    """One step. Times are since the program began. Seconds.

    Attributes:
        kind: ``gen``, ``select``, ``text``, ``fork``, ``join``, ``media``, ``scope`` or ``when``.
        pushed_s: When the body said it.
        sent_s: When it was sent to the back end.
        begin_s: When everything that it waited for was there; None: it was not reached.
        queue_s: Of the time since then, how long it waited in the engine's queue.
        first_s: When its first token came.
        cached_tokens: Of the prompt's tokens: shared with others, or computed earlier.
        others: States that a fork began, or a join waited for.
    """

    kind: str
    state: str
    name: str
    file: str
    line: int
    pushed_s: float
    sent_s: float
    begin_s: float | None = None
    first_s: float | None = None
    end_s: float | None = None
    queue_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, step: AnyStep, line: Line, pushed_s: float, sent_s: float) -> TraceStep:
        """Return the row of a step that has been sent."""
        others = step.into if isinstance(step, Fork) else ()
        if isinstance(step, Join):
            others = step.states
        return cls(
            kind=str(step.__struct_config__.tag),
            state=step.state,
            name=step.name if isinstance(step, Gen | Select) else "",
            file=line.file,
            line=line.number,
            pushed_s=round(pushed_s, 6),
            sent_s=round(sent_s, 6),
            others=tuple(others),
        )

    def hear(self, done: StepDone) -> None:
        """Take what the step took."""
        report = done.report
        self.state = done.state
        self.begin_s = round(self.sent_s + report.begin_s, 6)
        self.end_s = round(self.sent_s + report.end_s, 6)
        if report.first_s is not None:
            self.first_s = round(self.sent_s + report.first_s, 6)
        self.queue_s = report.queue_s
        self.prompt_tokens = report.prompt_tokens
        self.cached_tokens = report.cached_tokens
        self.completion_tokens = report.completion_tokens


class Trace:
    """The steps of one run of a program.

    Args:
        program: Its name.
        steps: In the order in which they were sent.
    """

    def __init__(self, program: str, steps: Sequence[TraceStep]) -> None:
        self.program = program
        self.steps = list(steps)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"program": self.program, "steps": [asdict(step) for step in self.steps]}

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def to_svg(self) -> str:
        """Return it as a picture: a lane a state, a bar a gen or select."""
        return draw(self)
