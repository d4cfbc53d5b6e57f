"""LoRA adapters on several ranks: rank 0 reads one first, then the others do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headstock.errors import HeadstockError
from headstock.parallel.launch import Ranks
from headstock.parallel.messages import DropAdapter, KeepAdapter


class LocalShelf(Protocol):
    """Where a rank's own adapters wait; ``lora.AdapterLibrary`` is one."""

    def fetch(self, adapter: str, path: str) -> None:
        """Begin to read the adapter in the folder ``path``."""
        ...

    def fetched(self) -> Sequence[tuple[str, HeadstockError | None]]:
        """Return the adapters that were read since the last call, or why they were not."""
        ...

    def drop(self, adapter: str) -> None:
        """Forget an adapter; no plan will name it any more."""
        ...

    def close(self) -> None:
        """End what reads."""
        ...


class RankedShelf:
    """Rank 0's shelf, which takes the other ranks' along.

    What rank 0 has read without fault the others read as well; one that cannot is lost.

    Args:
        local: Rank 0's own.
        ranks: The others.
    """

    def __init__(self, local: LocalShelf, ranks: Ranks) -> None:
        self._local, self._ranks = local, ranks
        self._paths: dict[str, str] = {}

    def fetch(self, adapter: str, path: str) -> None:
        """Begin to read the adapter in the folder ``path``."""
        self._paths[adapter] = path
        self._local.fetch(adapter, path)

    def fetched(self) -> Sequence[tuple[str, HeadstockError | None]]:
        """Return the adapters that were read since the last call, or why they were not.

        Raises:
            DeviceError: A rank is lost.
        """
        found = self._local.fetched()
        for adapter, error in found:
            path = self._paths.pop(adapter, None)
            if error is None and path is not None:
                self._ranks.send(KeepAdapter(adapter=adapter, path=path))
        return found

    def drop(self, adapter: str) -> None:
        """Forget an adapter; no plan will name it any more.

        Raises:
            DeviceError: A rank is lost.
        """
        is_reading = self._paths.pop(adapter, None) is not None
        self._local.drop(adapter)
        if not is_reading:
            self._ranks.send(DropAdapter(adapter=adapter))

    def close(self) -> None:
        """End what reads."""
        self._local.close()
