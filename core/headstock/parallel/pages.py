"""The pages of several ranks, which leave and come back together."""

from __future__ import annotations

from typing import Protocol

from headstock.errors import DeviceError
from headstock.parallel.launch import Ranks
from headstock.parallel.messages import ReleasePages, RestorePages


class LocalPages(Protocol):
    """A rank's own pages; ``runner.TorchRunner`` is one."""

    def release_pages(self) -> int:
        """Give their memory back to the system; returns the bytes. No step is in flight."""
        ...

    def restore_pages(self) -> None:
        """Make them again."""
        ...


class RankedPages:
    """Rank 0's pages, which take the other ranks' along.

    Whatever goes wrong is final, as it is with steps.

    Args:
        local: Rank 0's own.
        ranks: The others.
    """

    def __init__(self, local: LocalPages, ranks: Ranks) -> None:
        self._local, self._ranks = local, ranks

    def release_pages(self) -> int:
        """Give the memory of every rank's pages back; returns rank 0's bytes.

        Raises:
            DeviceError: A rank is lost.
        """
        self._ranks.send(ReleasePages())
        return self._local.release_pages()

    def restore_pages(self) -> None:
        """Make the pages of every rank again.

        Raises:
            DeviceError: A rank is lost, or has no room for them.
        """
        self._ranks.send(RestorePages())
        try:
            self._local.restore_pages()
        except Exception as error:
            cause = self._ranks.explain(error)
            raise DeviceError(
                f"The pages of rank 0 could not be made again: {cause}.",
                remedy="All ranks are started again; see the traceback in the engine's log.",
            ) from error
