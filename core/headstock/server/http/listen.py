"""The socket that requests come to, bound before anything costly is begun."""

from __future__ import annotations

import socket

from headstock.config.schema import ServerSettings
from headstock.errors import ConfigError

BACKLOG = 2048


def listen_all(settings: ServerSettings) -> list[socket.socket]:
    """Return a socket for requests, and one for control where the settings want it apart.

    Raises:
        ConfigError: An address is not ours, or a port is taken.
    """
    listeners = [listen(settings)]
    if settings.admin_port is not None:
        try:
            listeners.append(_listen(settings.admin_host, settings.admin_port, "--admin-port"))
        except ConfigError:
            listeners[0].close()
            raise
    return listeners


def listen(settings: ServerSettings) -> socket.socket:
    """Return a socket bound to the settings' address.

    Raises:
        ConfigError: The address is not ours, or the port is taken.
    """
    return _listen(settings.host, settings.port, "--port")


def _listen(host: str, port: int, flag: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off, which would cost 40 ms a token.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            remedy=f"Choose another {flag}, or stop what listens there.",
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
