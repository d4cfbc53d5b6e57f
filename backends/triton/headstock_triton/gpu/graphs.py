"""Which steps are captured, and what they are padded to.

Padding costs matrix products on padding rows; buckets cost time at start-up and
memory for the graph itself. Attention costs nothing for padding: it skips rows that are not real.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import chain

ROW_BUCKETS = tuple(
    chain(
        (1, 2, 4),
        range(8, 64, 8),
        range(64, 128, 16),
        range(128, 256, 32),
        range(256, 513, 64),
    )
)
"""Rows of captured steps in which every row has as many tokens."""

RAGGED_TOKENS = (16, 32, 64, 128, 256, 512, 1024)
"""Tokens of captured ragged steps; larger ones keep the device busy longer than they take to
launch."""

RAGGED_ROWS = (4, 32, 288)
"""Rows of captured ragged steps."""


class BucketPolicy:
    """Captures steps whose launches would take longer than their work."""

    def bucket(self, num_tokens: int, num_rows: int, is_uniform: bool) -> tuple[int, int] | None:
        """Return (T, R) to pad a step to, or None to run it eagerly."""
        if is_uniform:
            rows = _least(ROW_BUCKETS, num_rows)
            return None if rows is None else (rows * (num_tokens // num_rows), rows)
        tokens, rows = _least(RAGGED_TOKENS, num_tokens), _least(RAGGED_ROWS, num_rows)
        return None if tokens is None or rows is None or rows > tokens else (tokens, rows)

    def warm_up(self, max_tokens: int, max_rows: int) -> list[tuple[int, int, bool]]:
        """Return every bucket that a step can fall into."""
        rows = _up_to(ROW_BUCKETS, min(max_rows, max_tokens))
        ragged = [
            (tokens, rows, False)
            for tokens in _up_to(RAGGED_TOKENS, max_tokens)
            for rows in _up_to(RAGGED_ROWS, min(max_rows, tokens))
        ]
        return [(count, count, True) for count in rows] + ragged


def _least(buckets: tuple[int, ...], value: int) -> int | None:
    """Return the least bucket that is not under ``value``."""
    at = bisect_left(buckets, value)
    return buckets[at] if at < len(buckets) else None


def _up_to(buckets: tuple[int, ...], most: int) -> list[int]:
    return [bucket for bucket in buckets if bucket <= most]
