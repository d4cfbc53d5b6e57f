"""A progress bar on a terminal, some lines where there is none."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

LINE_EVERY = 0.25


@contextlib.contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of ``label`` while the block runs; yields a callback (done, total)."""
    if not sys.stderr.isatty():
        yield _lines(label)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        yield update


def _lines(label: str) -> Callable[[int, int], None]:
    """Return a callback that prints a line each time another quarter is done."""
    printed = 0.0

    def update(done: int, total: int) -> None:
        nonlocal printed
        share = done / total if total else 0.0
        if share >= printed + LINE_EVERY:
            printed = share - share % LINE_EVERY
            size = f"{total / 2**20:.0f} MiB"
            print(f"{label}: {printed:.0%} of {size}", file=sys.stderr, flush=True)

    return update
