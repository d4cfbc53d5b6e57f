"""What a program needs of the backend that runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from headstock.programs import Event, Program

Emit = Callable[[Event], None]


@runtime_checkable
class Backend(Protocol):
    """Runs programs. All methods are called in the language's event loop.

    Attributes:
        name: For people.
    """

    name: str

    async def run(self, program: Program, emit: Emit) -> None:
        """Run ``program``, telling ``emit`` of each gen and select when it is over.

        Raises:
            RequestError: A step is at fault; ``field`` names it.
        """
        ...

    async def flush_cache(self) -> None:
        """Forget cached prefixes that no request uses.

        Raises:
            RequestError: This endpoint cannot be asked to.
        """
        ...

    async def server_info(self) -> dict[str, Any]:
        """Return what is known of the server.

        Raises:
            RequestError: This endpoint does not say.
        """
        ...

    async def close(self) -> None:
        """Free what it holds."""
        ...
