"""How start-up reports what it is doing."""

from __future__ import annotations

from collections.abc import Callable

from headstock.wire.messages import Loading

Report = Callable[[Loading], None]


def silent(_: Loading) -> None:
    """Show nothing."""


def meter(report: Report, phase: str, unit: str) -> Callable[[int, int], None]:
    """Return a (done, total) callback that reports at most every hundredth."""
    shown = -1

    def tell(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown:
            shown = percent
            report(Loading(phase=phase, done=done, total=total, unit=unit))

    return tell
