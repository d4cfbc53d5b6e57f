"""Responses that were asked to be kept."""

from __future__ import annotations

from typing import Any

import msgspec

from headstock.errors import RequestError
from headstock.server.protocols.messages import ChatMessage
from headstock.server.store import Store

MAX_STORED = 1024
"""Responses that are kept for one owner; the oldest are forgotten first."""
KIND = "response"


class Stored(msgspec.Struct, frozen=True):
    """A response that was asked to be kept."""

    response: dict[str, Any]
    messages: list[ChatMessage]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Stored).decode


class ResponseStore:
    """The last responses that were asked to be kept, each for the caller whose key asked.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, owner: str, stored: Stored) -> None:
        """Keep a response, forgetting the oldest of its owner if there are too many.

        Raises:
            RequestError: Code ``storage_full``: there is no room, even without the others.
        """
        name, value = stored.response["id"], _encode(stored)
        known = self._store.get(KIND, owner, name)
        self.make_room(owner, len(value) - len(known or b""), name)
        self._store.put(KIND, owner, name, value)

    def make_room(self, owner: str, num_bytes: int, name: str = "") -> None:
        """Forget the oldest responses of an owner for a new one, as far as that takes.

        Args:
            owner: Whose.
            num_bytes: What the new one needs.
            name: Of the new one, which is not forgotten.
        """
        others = [each.name for each in self._store.entries(KIND, owner) if each.name != name]
        while others and (len(others) >= MAX_STORED or self._store.room(owner) < num_bytes):
            self._store.drop(KIND, owner, others.pop(0))

    def peek(self, owner: str, response_id: str) -> Stored | None:
        """Return a kept response; None: there is none of this name."""
        found = self._store.get(KIND, owner, response_id)
        return None if found is None else _decode(found)

    def find(self, owner: str, response_id: str, field: str | None = None) -> Stored:
        """Return a kept response.

        Raises:
            RequestError: There is none of this name.
        """
        found = self.peek(owner, response_id)
        if found is None:
            raise unknown_response(response_id, field)
        return found

    def forget(self, owner: str, response_id: str) -> None:
        """Forget a response.

        Raises:
            RequestError: There is none of this name.
        """
        if not self._store.drop(KIND, owner, response_id):
            raise unknown_response(response_id)


def unknown_response(response_id: str, field: str | None = None) -> RequestError:
    """Return the error for a response that there is not."""
    return RequestError(
        f"There is no response {response_id[:128]!r}.",
        remedy=f"Ask with store: true; the last {MAX_STORED} of each key are kept.",
        field=field,
        code="not_found",
    )
