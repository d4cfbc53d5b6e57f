"""How a request can end."""

from __future__ import annotations

import msgspec


class FinishReason(msgspec.Struct, frozen=True, array_like=True):
    """Why a request ended; every request gets exactly one.

    Attributes:
        kind: ``stop`` (a stop id, string or pattern matched), ``length`` (a limit was reached),
            ``abort`` (the caller or the operator ended it) or ``error`` (it could not be served).
        matched: What stopped it: the token id, the stop string or the stop pattern. None otherwise.
        message: For ``abort`` and ``error``: what happened, in words for the caller.
        code: For ``error``: a stable machine-readable name, such as ``queue_full``.
        retry_after_s: For errors worth another try: when. Seconds.
    """

    kind: str
    matched: int | str | None = None
    message: str = ""
    code: str = ""
    retry_after_s: float | None = None
