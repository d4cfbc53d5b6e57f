"""What ranks report to rank 0, and what it orders: plans and masks; an empty frame is the end."""

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


AnyReport = Joining | Failed
END = b""
"""In place of a plan: the rank is to end."""

orders = msgspec.msgpack.Decoder(StepPlan | Masks)
reports = msgspec.msgpack.Decoder(AnyReport)
