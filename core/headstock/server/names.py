"""What callers call their requests, so that they can end them."""

from __future__ import annotations

from collections.abc import Sequence

from headstock.errors import RequestError

Name = tuple[str, str]
"""Whose it is, and what its owner calls it."""


class Names:
    """Names in use. One owner uses a name for one request, whose completions all have it."""

    def __init__(self) -> None:
        self._ids: dict[Name, list[str]] = {}

    def check(self, owner: str, rids: Sequence[str]) -> None:
        """Refuse a call that uses a name twice, or one that is in use.

        Raises:
            RequestError: Naming it.
        """
        seen: set[str] = set()
        for rid in rids:
            if (owner, rid) in self._ids or rid in seen:
                raise RequestError(
                    f"rid {rid!r} is in use.", remedy="Give each request its own.", field="rid"
                )
            seen.add(rid)

    def add(self, name: Name, request_id: str) -> None:
        """Note that ``request_id`` has ``name``."""
        self._ids.setdefault(name, []).append(request_id)

    def remove(self, name: Name, request_id: str) -> None:
        """Note that ``request_id`` is over."""
        ids = self._ids[name]
        ids.remove(request_id)
        if not ids:
            del self._ids[name]

    def ids(self, rid: str, owner: str | None) -> list[str]:
        """Return the ids of the requests that ``owner`` named ``rid``, exactly.

        Args:
            rid: The name.
            owner: Whose; None: of all owners.
        """
        if owner is None:
            return [i for (_, name), ids in self._ids.items() if name == rid for i in ids]
        return list(self._ids.get((owner, rid), ()))
