"""Processes that render one chat template, each answer within bounds of time and memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headstock.sandbox import Pool, Process

CPU_LIMIT_S = 0.5
"""Processor time that one rendering may take. Seconds."""
WALL_LIMIT_S = 10.0
"""A process that does not answer by then is killed: the machine is busy beyond use. Seconds."""
MEMORY_LIMIT = 512 * 2**20
"""Address space of a process. Bytes."""
MAX_CHARACTERS = 16 * 2**20
"""Longest text that a rendering may give."""
MAX_IDLE = 2
"""Processes that are kept while nothing is rendered."""
_PROGRAM = Path(__file__).with_name("render_process.py")


class RenderProcess:
    """One process with one template; used by one thread at a time.

    Args:
        source: The template.

    Raises:
        OSError: No process can be started.
    """

    def __init__(self, source: str) -> None:
        self._process = Process([str(_PROGRAM)])
        limits = {
            "cpu_s": CPU_LIMIT_S,
            "memory_bytes": MEMORY_LIMIT,
            "max_characters": MAX_CHARACTERS,
        }
        self._hello: dict[str, Any] = {"source": source, **limits}
        self._compiled: dict[str, Any] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it may still answer."""
        return self._process.is_alive

    @property
    def close(self) -> Callable[[], object | None]:
        """Ends it."""
        return self._process.close

    def compile(self) -> dict[str, Any]:
        """Return what it says of the template: nothing, or an ``error`` and its ``message``.

        Raises:
            LostError: It did not answer.
        """
        if self._compiled is None:
            self._compiled = self._ask(self._hello)
        return self._compiled

    def render(self, variables: Mapping[str, object]) -> dict[str, Any]:
        """Return ``text``, or an ``error`` and its ``message``.

        Raises:
            LostError: It did not answer within the limits; it is of no use any more.
            TypeError: A variable is no JSON.
            ValueError: Likewise.
        """
        compiled = self.compile()
        return compiled if "error" in compiled else self._ask(variables)

    def _ask(self, value: Mapping[str, object]) -> dict[str, Any]:
        return json.loads(self._process.ask(json.dumps(value).encode(), WALL_LIMIT_S))


class RenderPool:
    """Renders one template from any thread; a process that was lost is replaced.

    Args:
        source: The template.
    """

    def __init__(self, source: str) -> None:
        self._pool = Pool(lambda: RenderProcess(source), MAX_IDLE)

    def compile(self) -> dict[str, Any]:
        """Return what a process says of the template: nothing, or an ``error``.

        Raises:
            LostError: It took more than the limits.
            OSError: No process can be started.
        """
        return self._pool.call(RenderProcess.compile)

    def render(self, variables: Mapping[str, object]) -> dict[str, Any]:
        """Return ``text``, or an ``error`` and its ``message``.

        Raises:
            LostError: It took more than the limits.
            OSError: No process can be started.
            TypeError: A variable is no JSON.
            ValueError: Likewise.
        """
        return self._pool.call(lambda process: process.render(variables))

    def close(self) -> None:
        """End the processes that are idle."""
        self._pool.close()
