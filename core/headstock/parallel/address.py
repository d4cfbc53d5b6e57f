"""Where the ranks of a model meet: a directory that only this user can enter."""

from __future__ import annotations

import msgspec

from headstock.plugins.hooks import GroupInfo


class RankAddress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a process must know to be one of the ranks.

    Attributes:
        rank: Which; 0 is the engine's process.
        size: How many there are.
        directory: Where they meet, mode 0700.
        parent: Process id of rank 0: a rank does not outlive it.
    """

    rank: int
    size: int
    directory: str
    parent: int

    @property
    def plans(self) -> str:
        """Socket on which this rank receives plans."""
        return f"ipc://{self.directory}/plans-{self.rank}"

    @property
    def reports(self) -> str:
        """Socket on which the other ranks report to rank 0."""
        return f"ipc://{self.directory}/reports"

    def group(self, name: str = "tp") -> GroupInfo:
        """Return what the collectives of group ``name`` are joined with."""
        return GroupInfo(
            name=name, rank=self.rank, size=self.size, address=f"file://{self.directory}/{name}"
        )
