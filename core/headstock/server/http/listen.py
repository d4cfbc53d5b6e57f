"""The socket that requests come to, bound before anything costly is begun."""

from __future__ import annotations

import socket

from headstock.config.schema import ServerSettings
from headstock.errors import ConfigError

BACKLOG = 2048


def listen(settings: ServerSettings) -> socket.socket:
    """Return a socket bound to the settings' address.

    Raises:
        ConfigError: The address is not ours, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off, which would cost 40 ms a token.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror or error}.",
            remedy="Choose another --port, or stop what listens there.",
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
