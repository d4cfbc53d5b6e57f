"""Offers to speak another protocol, which this server ignores.

A client may send ``Connection: Upgrade`` with any request (RFC 9110, section 7.8); every stock
Java client offers h2c so. The parser takes such an offer for accepted and leaves the body unread.
Here the request is parsed again without the offer, so that it is served like any other.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER_HEADERS = frozenset({b"upgrade", b"http2-settings"})


class OfferIgnoring(HttpToolsProtocol):
    """uvicorn's protocol, for which an offer to upgrade changes nothing."""

    # Beside the base's attributes in its dictionary, which is small only while these are few.
    __slots__ = ("_is_offered",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_offered = False

    def data_received(self, data: bytes) -> None:
        """Parse; what follows the head of a request with an offer is parsed without the offer."""
        self._unset_keepalive_if_required()
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def on_headers_complete(self) -> None:
        """Serve the request, unless it is to be parsed again."""
        self._is_offered = self.parser.should_upgrade()
        if not self._is_offered:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Take the end of the body."""
        if not self._is_offered:
            super().on_message_complete()

    def _feed(self, data: bytes) -> bytes:
        """Parse ``data``; return what is still to be parsed, by the new parser."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            method = self.parser.get_method()
            if method == b"CONNECT":
                raise httptools.HttpParserError("CONNECT asks for a tunnel") from offer
            head = self._head_without_offer(method)
            self._is_offered = False
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            return head + data[offer.args[0] :]
        return b""

    def _head_without_offer(self, method: bytes) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(t for t in tokens if t.lower() not in _OFFER_HEADERS)
            if value and name not in _OFFER_HEADERS:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join(lines) + b"\r\n\r\n"
