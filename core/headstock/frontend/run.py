"""One run of a program: what its body has said and not sent yet, and what is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from headstock.frontend.backends.base import Backend
from headstock.frontend.errors import Line
from headstock.frontend.hub import Hub
from headstock.frontend.segments import Item, Segment, split
from headstock.frontend.slots import Slot
from headstock.frontend.trace import Trace, TraceStep
from headstock.programs import MAIN, Branch, Fork, Join
from headstock.programs.graph import AnyStep


class Run:
    """Records steps, and sends them when a result is wanted or the body has ended.

    So a body that reads nothing goes out as one request, and one that reads goes out in parts.

    Args:
        program: Its name.
        backend: Runs the parts.
        hub: Where they are waited for.
        sampling: Parameters of gens that do not say themselves.
        is_streamed: Whether text is sent as it comes.
        return_logprob: Whether all gens tell log probabilities.
        top_logprobs_num: Of so many of the likeliest tokens too, at least.
        logprob_start_len: And of the prompts' tokens from this position on; None, -1: of none.
    """

    def __init__(
        self,
        program: str,
        backend: Backend,
        hub: Hub,
        sampling: Mapping[str, Any],
        *,
        is_streamed: bool = False,
        return_logprob: bool = False,
        top_logprobs_num: int = 0,
        logprob_start_len: int | None = None,
    ) -> None:
        self.program = program
        self.backend = backend
        self.hub = hub
        self.sampling = dict(sampling)
        self.is_streamed = is_streamed
        self.return_logprob = return_logprob
        self.top_logprobs_num = top_logprobs_num
        self.logprob_start_len = None if logprob_start_len == -1 else logprob_start_len
        self._lock = threading.Lock()
        self._pending: list[Item] = []
        self._tails: dict[str, Segment | Branch] = {MAIN: Branch()}
        self._segments: list[Segment] = []
        self._tasks: list[Future[None]] = []
        self._rows: list[TraceStep] = []
        self._began_s = time.monotonic()

    def push(self, step: AnyStep, line: Line, slot: Slot | None) -> Item:
        """Record a step."""
        item = Item(step, line, slot, time.monotonic())
        with self._lock:
            self._pending.append(item)
        return item

    def flush(self) -> None:
        """Send what was recorded, without waiting for it."""
        with self._lock:
            items, self._pending = self._pending, []
            for group in split(items):
                self._send(group)

    def abandon(self) -> None:
        """Forget what was recorded and not sent."""
        with self._lock:
            self._pending.clear()

    def tail(self, state: str) -> Segment | Branch:
        """Return the last segment about a state, or how it began."""
        with self._lock:
            return self._tails[state]

    def finish(self) -> None:
        """Send what is left, and wait for all of it.

        Raises:
            ProgramError: A step was at fault, or could not be served.
        """
        self.flush()
        self.hub.check_outside()
        for segment in self._segments:
            segment.done.result()

    def ends(self) -> list[Future[dict[str, Branch]]]:
        """Send what is left, and return what has to end."""
        self.flush()
        return [segment.done for segment in self._segments]

    def cancel(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()

    def trace(self) -> Trace:
        """Return what was done so far."""
        return Trace(self.program, self._rows)

    def _send(self, items: list[Item]) -> None:
        names: dict[str, None] = {}
        forked: set[str] = set()
        for item in items:
            step = item.step
            names[step.state] = None
            if isinstance(step, Fork):
                forked |= set(step.into)
            elif isinstance(step, Join):
                names |= dict.fromkeys(step.states)
        starts = {name: self._tails[name] for name in names if name not in forked}
        segment = Segment(items, starts, self._rows, self._began_s)
        for item in items:
            item.segment.set_result(segment)
        self._tails |= dict.fromkeys([*names, *forked], segment)
        self._segments.append(segment)
        self._tasks.append(self.hub.submit(segment.execute(self.backend)))
