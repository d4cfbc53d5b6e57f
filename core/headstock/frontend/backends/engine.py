"""An engine in this process, such as ``headstock.Engine``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from headstock.frontend.backends.base import Emit
from headstock.programs import Event, Outcome, Program


@runtime_checkable
class EngineLike(Protocol):
    """What an engine has to offer."""

    async def async_program(
        self, program: Program, emit: Callable[[Event], None] | None = None
    ) -> Outcome:
        """Run a program; ``emit`` may be called in any thread."""
        ...

    def flush_cache(self) -> int:
        """Forget cached prefixes that no request uses."""
        ...


class EngineBackend:
    """Runs programs on an engine of this process.

    Args:
        engine: The engine; its maker shuts it down.
    """

    def __init__(self, engine: EngineLike) -> None:
        self.engine = engine
        self.name = "engine"

    async def run(self, program: Program, emit: Emit) -> None:
        """Run ``program``; see :class:`headstock.frontend.backends.base.Backend`."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Event | None] = asyncio.Queue()

        def tell(event: Event | None) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, event)

        async def work() -> None:
            try:
                await self.engine.async_program(program, tell)
            finally:
                tell(None)  # behind the last event, which another thread has sent

        task = asyncio.create_task(work())
        try:
            while (event := await heard.get()) is not None:
                emit(event)
            await task
        finally:
            task.cancel()

    async def flush_cache(self) -> None:
        """Forget cached prefixes that no request uses."""
        await asyncio.to_thread(self.engine.flush_cache)

    async def server_info(self) -> dict[str, Any]:
        """Return what is known of the engine: its limits and facts."""
        started = getattr(self.engine, "started", None)
        facts = getattr(started, "model_facts", {})
        return {"backend": self.name, "model_facts": dict(facts)}

    async def close(self) -> None:
        """Do nothing: the engine is its maker's."""
