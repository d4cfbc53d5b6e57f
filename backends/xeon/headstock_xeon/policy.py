"""Which steps become programs."""

from __future__ import annotations

EXACT_TOKENS = 64
"""Decode steps up to this run at their own size: a capture costs about one eager step."""


class ProgramPolicy:
    """Decode steps are captured, each size when it is first met.

    Larger ones are padded, so that a busy server does not capture every size there is. Ragged
    steps run eagerly: their sizes hardly repeat, padding costs more than the calls it would save.
    """

    def bucket(self, num_tokens: int, num_rows: int, is_uniform: bool) -> tuple[int, int] | None:
        """Return the padded size of a decode step, None for others."""
        if not is_uniform:
            return None
        unit = 1 if num_tokens <= EXACT_TOKENS else 16 if num_tokens <= 256 else 32
        padded = -(-num_tokens // unit) * unit
        return padded, padded

    def warm_up(self, max_tokens: int, max_rows: int) -> list[tuple[int, int, bool]]:
        """Return nothing: sizes are captured as they come."""
        return []
