"""Which back end runs a program: one that is given, or the default one."""

from __future__ import annotations

from typing import Any

from headstock.frontend.backends.base import Backend
from headstock.frontend.backends.engine import EngineBackend, EngineLike
from headstock.frontend.backends.server import HeadstockServer
from headstock.frontend.errors import ProgramError, caller
from headstock.frontend.hub import hub

BackendLike = Backend | EngineLike | str
"""A back end, an engine of this process, or the URL of a Headstock server."""


class _Default:
    """The back end of programs that name none, and the servers that were named by URL."""

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self.servers: dict[str, HeadstockServer] = {}
        """By URL, so that programs which name one share its connections."""


_default = _Default()


def backend_of(given: BackendLike | None) -> Backend:
    """Return the back end that ``given`` means; None: the default one.

    Raises:
        ProgramError: It means none, or there is no default.
    """
    if given is None:
        if _default.backend is None:
            raise ProgramError(
                "No back end is set.",
                remedy="Call set_default_backend with an engine or a server's URL.",
                line=caller(),
            )
        return _default.backend
    if isinstance(given, str):
        return _default.servers.setdefault(given, HeadstockServer(given))
    if isinstance(given, Backend):
        return given
    if isinstance(given, EngineLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        return EngineBackend(given)
    raise ProgramError(
        f"A {type(given).__name__} runs no programs.",
        remedy="Give an engine, a back end or a server's URL.",
        line=caller(),
    )


def set_default_backend(backend: BackendLike) -> None:
    """Set the backend of programs that name none."""
    _default.backend = backend_of(backend)


def flush_cache(backend: BackendLike | None = None) -> None:
    """Forget cached prefixes that no request uses.

    Raises:
        RequestError: The back end cannot be asked to.
    """
    hub().wait(backend_of(backend).flush_cache())


def get_server_info(backend: BackendLike | None = None) -> dict[str, Any]:
    """Return what is known of the server.

    Raises:
        RequestError: The back end does not say.
    """
    return hub().wait(backend_of(backend).server_info())
