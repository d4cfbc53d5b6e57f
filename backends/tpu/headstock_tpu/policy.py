"""What steps are padded to. Every size is a program to compile, so there are few."""

from __future__ import annotations

from bisect import bisect_left

ROWS = (8, 32, 128, 256, 512)
"""Rows of steps in which every row has as many tokens."""

RAGGED = (
    *((64, 8), (256, 8), (256, 32), (512, 32), (1024, 32), (1024, 144), (2048, 144)),
    *((2048, 288), (4096, 288), (8192, 288), (8192, 576), (16384, 576)),
)
"""(Tokens, rows) of other steps, the least first."""


class StaticPolicy:
    """Gives every step a bucket: nothing runs at a size of its own."""

    def bucket(self, num_tokens: int, num_rows: int, is_uniform: bool) -> tuple[int, int] | None:
        """Return (T, R) to pad a step to; None: it is larger than any program."""
        if is_uniform:
            rows = _least(ROWS, num_rows)
            return None if rows is None else (rows * (num_tokens // num_rows), rows)
        fitting = (pair for pair in RAGGED if pair[0] >= num_tokens and pair[1] >= num_rows)
        return next(fitting, None)

    def warm_up(self, max_tokens: int, max_rows: int) -> list[tuple[int, int, bool]]:
        """Return every bucket that a step can fall into."""
        uniform = [(rows, rows, True) for rows in ROWS if rows <= min(max_rows, max_tokens)]
        ragged = [
            (tokens, rows, False)
            for tokens, rows in RAGGED
            if tokens <= max_tokens and rows <= max_rows
        ]
        return uniform + ragged


def _least(buckets: tuple[int, ...], value: int) -> int | None:
    """Return the least bucket that is not under ``value``."""
    at = bisect_left(buckets, value)
    return buckets[at] if at < len(buckets) else None
