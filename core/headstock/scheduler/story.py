"""What is reported of a request whose caller asks: why it waited, what it found, its chunks.

Waiting costs nothing per request: clocks that only grow say for how long something has kept
everyone out, and a request reads them when it comes and when it is admitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headstock.wire.requests import Story

STEP = "step"
SLOTS = "slots"
PAGES = "pages"
PREFIX = "prefix"
GRAMMAR = "grammar"
PAUSE = "pause"


class WaitClocks:
    """For how long each thing has kept waiting requests out, since the start. Seconds.

    ``step`` counts while nothing does: a request that comes meanwhile waits for the next step.
    """

    def __init__(self) -> None:
        self._clocks: dict[str, float] = {STEP: 0.0}
        self._blocker = STEP
        self._at_s = 0.0

    def advance(self, now_s: float) -> None:
        """Count the time since the last call for what kept requests out."""
        self._clocks[self._blocker] += max(0.0, now_s - self._at_s)
        self._at_s = now_s

    def block(self, blocker: str) -> None:
        """Note what keeps requests out from now on."""
        self._clocks.setdefault(blocker, 0.0)
        self._blocker = blocker

    def read(self) -> dict[str, float]:
        """Return the clocks."""
        return dict(self._clocks)

    def since(self, earlier: Mapping[str, float]) -> dict[str, float]:
        """Return how far each clock has moved since ``earlier``; those that have not are left out.

        Args:
            earlier: What :meth:`read` returned.
        """
        moved = {name: now - earlier.get(name, 0.0) for name, now in self._clocks.items()}
        return {name: seconds for name, seconds in moved.items() if seconds > 0}


@dataclass(slots=True)
class Notes:
    """What is noted of one request for its story.

    Attributes:
        clocks: The wait clocks when it came.
        waits: Seconds that it waited, by what for; complete once it is admitted.
        held_by: What it, other than those behind it, waits for now; "": nothing.
        held_since_s: Since when. Seconds.
        evicted_pages: Pages that were evicted when it was admitted.
        shared_tokens: Tokens of the prefix it found that running requests used then.
        chunk_steps: Steps that computed a chunk of it.
        chunk_ends: Where those chunks end. Tokens.
        chunk_times_s: When they were planned, after it came. Seconds.
    """

    clocks: dict[str, float]
    waits: dict[str, float] = field(default_factory=dict[str, float])
    held_by: str = ""
    held_since_s: float = 0.0
    evicted_pages: int = 0
    shared_tokens: int = 0
    chunk_steps: list[int] = field(default_factory=list[int])
    chunk_ends: list[int] = field(default_factory=list[int])
    chunk_times_s: list[float] = field(default_factory=list[float])

    def hold(self, what: str, now_s: float) -> None:
        """Note that it waits for ``what`` while others may pass."""
        if not self.held_by:
            self.held_by, self.held_since_s = what, now_s

    def admit(self, clocks: WaitClocks, queue_s: float, now_s: float) -> None:
        """Note that its waiting is over; what it was held by comes off what all waited for."""
        moved = clocks.since(self.clocks)
        held_s = 0.0
        if self.held_by:
            held_s = now_s - self.held_since_s
            self.waits[self.held_by] = self.waits.get(self.held_by, 0.0) + held_s
            self.held_by = ""
        # The clocks were read at the last step: they may say a step's time more than it waited.
        rest_s = max(0.0, queue_s - held_s)
        total_s = sum(moved.values())
        scale = min(1.0, rest_s / total_s) if total_s else 0.0
        for name, seconds in moved.items():
            if seconds * scale > 0:
                self.waits[name] = self.waits.get(name, 0.0) + seconds * scale

    def add_chunk(self, step: int, end: int, after_s: float) -> None:
        """Note a chunk that ``step`` computes."""
        self.chunk_steps.append(step)
        self.chunk_ends.append(end)
        self.chunk_times_s.append(after_s)

    def tell(self, last_step: int) -> Story:
        """Return the story."""
        return Story(
            waits=self.waits,
            evicted_pages=self.evicted_pages,
            shared_tokens=self.shared_tokens,
            chunk_steps=self.chunk_steps,
            chunk_ends=self.chunk_ends,
            chunk_times_s=self.chunk_times_s,
            last_step=last_step,
        )
