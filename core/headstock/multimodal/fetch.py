"""Fetches images from public addresses, where the operator allows it.

The name is resolved once, all its addresses are checked, and one of those is connected to: what was
checked is what is used. There are no redirects, no credentials and no other port than 443.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult, urlsplit

from headstock.multimodal.source import Source, too_many_bytes, wrong

PORT = 443
CHUNK = 1 << 16


def fetch(source: Source, *, max_bytes: int, timeout_s: float) -> bytes:
    """Return the bytes that lie at the source's address.

    Args:
        source: Its URL begins with ``http:`` or ``https:``.
        max_bytes: More are not read.
        timeout_s: For everything together. Seconds.

    Raises:
        RequestError: It may not be fetched, or cannot be.
    """
    parts = _check_url(source)
    host = parts.hostname or ""
    deadline = time.monotonic() + timeout_s
    address = _resolve(source, host)
    connection = _Vetted(host, address, timeout_s)
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    try:
        connection.request("GET", target, headers={"Accept": "image/*"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise wrong(
                source,
                f"is answered with status {response.status}",
                "Give an address that answers with the image itself.",
                "image_not_fetched",
            )
        return _read(source, response, connection, max_bytes, deadline)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise wrong(
            source, "cannot be fetched", "Send it as a data URL.", "image_not_fetched"
        ) from error
    finally:
        connection.close()


def _check_url(source: Source) -> SplitResult:
    """Refuse addresses that clients of different strictness read differently, and other ports."""
    url = source.url
    is_plain = url.isascii() and url.isprintable() and "\\" not in url and " " not in url
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        is_plain, parts, port = False, urlsplit("https://"), None
    if not is_plain or not parts.hostname or parts.username is not None or "@" in parts.netloc:
        raise wrong(source, "is not a plain address", "Write https://host/path.")
    if parts.scheme != "https" or port not in (None, PORT):
        raise wrong(source, "is not fetched by https from port 443", "Use such an address.")
    return parts


def _resolve(source: Source, host: str) -> str:
    """Return a public address of ``host``, all of whose addresses are.

    Raises:
        RequestError: It has none, or one that is not public.
    """
    try:
        found = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise wrong(
            source, "names a host that is not known", "Check it.", "image_not_fetched"
        ) from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise wrong(
            source,
            "names a host that is not public",
            "Send it as a data URL.",
            "image_not_allowed",
        )
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether anyone on the internet may be meant by ``address``."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is not None:
            return is_public(str(inner))
        if parsed.teredo is not None or parsed in ipaddress.ip_network("64:ff9b::/96"):
            return False
    return parsed.is_global and not parsed.is_multicast


def _read(
    source: Source,
    response: http.client.HTTPResponse,
    connection: _Vetted,
    max_bytes: int,
    deadline: float,
) -> bytes:
    found = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if connection.sock is not None:
            connection.sock.settimeout(left)
        chunk = response.read1(CHUNK)
        if not chunk:
            return bytes(found)
        found += chunk
        if len(found) > max_bytes:
            raise too_many_bytes(source, len(found), max_bytes)


class _Vetted(http.client.HTTPSConnection):
    """A connection to an address that was checked, whatever the name means by now."""

    def __init__(self, host: str, address: str, timeout_s: float) -> None:
        super().__init__(host, PORT, timeout=timeout_s, context=ssl.create_default_context())
        self._address = address
        self._limit_s = timeout_s

    def connect(self) -> None:
        """Connect to the address; the certificate must be of the name."""
        plain = socket.create_connection((self._address, PORT), self._limit_s)
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(plain, server_hostname=self.host)
