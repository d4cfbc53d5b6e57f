"""Prints the files of this repository's packages whose code runs for one chat request, one a line.

The engine is in this process, on the reference backend; the request goes through the routes as a
client's does. What runs once only, at the start or for the first request, is left out.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import headstock
from headstock.assemble.offline import Engine

CORE = Path(headstock.__file__).parent
MODELS = CORE.parent.parent / "models"
OFFLINE = {"assemble/offline.py", "assemble/local_routes.py"}
"""What stands here for the processes of a server."""


class Walk:
    """Notes the files of functions that are called while ``is_on``."""

    def __init__(self) -> None:
        self.is_on = False
        self.files: set[str] = set()

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        if self.is_on and event == "call":
            self.files.add(frame.f_code.co_filename)

    def names(self) -> list[str]:
        """Return what was noted, relative to the package."""
        own = [Path(file) for file in self.files]
        names = [str(file.relative_to(CORE)) for file in own if file.is_relative_to(CORE)]
        names += [str(file.relative_to(MODELS)) for file in own if file.is_relative_to(MODELS)]
        return sorted(set(names) - OFFLINE)


def ask(engine: Engine, number: int) -> None:
    messages = [{"role": "user", "content": f"Say hello to number {number}."}]
    body = {"messages": messages, "max_tokens": 4, "temperature": 0}
    status, answer = asyncio.run(engine.async_request("/v1/chat/completions", body))
    assert status == 200, answer


def main() -> None:
    walk = Walk()
    threading.setprofile(walk.note)
    engine = Engine("smollm2", backend="reference")
    ask(engine, 1)
    sys.setprofile(walk.note)
    walk.is_on = True
    ask(engine, 2)
    walk.is_on = False
    sys.setprofile(None)
    engine.shutdown()
    sys.stdout.write("\n".join(walk.names()))


if __name__ == "__main__":
    main()
