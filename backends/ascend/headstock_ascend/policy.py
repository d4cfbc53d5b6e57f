"""Which steps are captured, and what they are padded to."""

from __future__ import annotations

from bisect import bisect_left
from itertools import chain

ROW_BUCKETS = tuple(chain((1, 2, 4), range(8, 64, 8), range(64, 257, 32)))
"""Rows of captured steps."""


class DecodePolicy:
    """Captures steps of one token a row; those that prompts are in run eagerly.

    Attention over rows of different queries is several calls, as many as the rows ask for: such
    steps have nothing that two of them share.
    """

    def bucket(self, num_tokens: int, num_rows: int, is_uniform: bool) -> tuple[int, int] | None:
        """Return (T, R) to pad a step to, or None to run it eagerly."""
        at = bisect_left(ROW_BUCKETS, num_rows)
        if not is_uniform or num_tokens != num_rows or at == len(ROW_BUCKETS):
            return None
        return ROW_BUCKETS[at], ROW_BUCKETS[at]

    def warm_up(self, max_tokens: int, max_rows: int) -> list[tuple[int, int, bool]]:
        """Return every bucket that a step can fall into."""
        return [(rows, rows, True) for rows in ROW_BUCKETS if rows <= min(max_rows, max_tokens)]
