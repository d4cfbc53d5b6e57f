"""What ranks report to rank 0, and what it orders; an empty frame is the end."""

from __future__ import annotations

import msgspec

from headstock.wire.steps import Masks, StepPlan


class Report(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Base of every report.

    Attributes:
        rank: Whose it is.
    """

    rank: int


class Joining(Report, frozen=True, kw_only=True, tag=True):
    """The rank has started and joins the collectives next."""


class Failed(Report, frozen=True, kw_only=True, tag=True):
    """The rank cannot go on.

    Attributes:
        is_config: Whether the operator must change something.
    """

    problem: str
    remedy: str
    is_config: bool


class KeepAdapter(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True):
    """Read a LoRA adapter: a plan may name it from now on.

    Attributes:
        adapter: Its generation id.
        path: Its folder.
    """

    adapter: str
    path: str


class DropAdapter(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True):
    """Forget a LoRA adapter: no plan will name it any more."""

    adapter: str


class ReleasePages(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Give the memory of the pages back: no plan comes before :class:`RestorePages`."""


class RestorePages(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Make the pages again."""


Order = StepPlan | Masks | KeepAdapter | DropAdapter | ReleasePages | RestorePages
AnyReport = Joining | Failed
END = b""
"""In place of a plan: the rank is to end."""

orders = msgspec.msgpack.Decoder(Order)
reports = msgspec.msgpack.Decoder(AnyReport)
