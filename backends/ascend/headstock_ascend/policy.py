"""Which steps are captured, and what they are padded to."""

from __future__ import annotations

from bisect import bisect_left

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Rows of captured steps. Few: each captured call of attention holds an event of the driver, of
which there are some thousands for all layers of all graphs."""


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
