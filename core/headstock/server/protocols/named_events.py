"""Server-sent events that have names, as Anthropic's and the responses' streams do."""

from __future__ import annotations

from typing import Any

from headstock.server.protocols.events import encode


def named_event(value: dict[str, Any]) -> bytes:
    """Return ``value`` as an event named by its ``type``."""
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), encode(value))
