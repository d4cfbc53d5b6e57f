"""What a trial found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """One row's figure, in words, and whether its goal is reached."""

    figure: str
    holds: bool
    details: dict[str, Any] = field(default_factory=dict)


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which ``part`` of ``values`` lie."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else float("nan")
