"""What ranks tell rank 0. Plans go the other way as they are, and an empty frame ends a rank."""

from __future__ import annotations

import msgspec


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

reports = msgspec.msgpack.Decoder(AnyReport)
