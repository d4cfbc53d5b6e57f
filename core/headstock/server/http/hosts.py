"""By which names the server may be reached: a web page may not pass it off as its own host."""

from __future__ import annotations

import ipaddress
from collections.abc import MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from headstock.errors import RequestError

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class AllowedHosts:
    """Names that a request's Host header may have.

    On a loopback address only local names are allowed: a page whose name was made to point there
    (DNS rebinding) sends its own.

    Args:
        address: Where the server listens.
        names: More names; elsewhere than on loopback they are the only ones, if there are any.
    """

    def __init__(self, address: str, names: Sequence[str]) -> None:
        more = frozenset(name.lower() for name in names)
        if is_loopback(address):
            self._names: frozenset[str] | None = LOCAL | more | {address.lower()}
        else:
            self._names = more or None

    def refusal(self, scope: MutableMapping[str, Any]) -> RequestError | None:
        """Return why a request may not come by its host's name, or None."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1 or (not hosts and scope["http_version"] == "1.1"):
            return RequestError(
                f"The request has {len(hosts)} Host headers.",
                remedy="Send exactly one, as HTTP/1.1 asks.",
                code="invalid_host",
            )
        if not hosts or self._names is None:
            return None
        name = name_of(hosts[0].decode("latin-1"))
        if name in self._names:
            return None
        return RequestError(
            f"The server is not called {name[:64]!r}.",
            remedy="Use localhost, or start the server with --allowed-host.",
            code="host_not_allowed",
        )


def is_loopback(address: str) -> bool:
    """Whether ``address`` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def name_of(host: str) -> str:
    """Return a Host header's name without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_cross_site(scope: MutableMapping[str, Any]) -> bool:
    """Whether a browser says that a page of another host sends this."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    origin = headers.get(b"origin", b"").decode("latin-1")
    if not origin:
        return headers.get(b"sec-fetch-site", b"") == b"cross-site"
    try:
        return (
            str(urlsplit(str(origin)).netloc).lower() != headers.get(b"host", b"").decode().lower()
        )
    except ValueError:
        return True
