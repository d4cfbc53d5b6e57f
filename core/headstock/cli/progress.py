"""A progress bar on a terminal, some lines where there is none."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

LINE_EVERY = 0.25
Advance = Callable[[int], None]
"""Called with how many more rows are done."""


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


@contextlib.contextmanager
def row_progress(label: str, total: int) -> Iterator[Advance]:
    """Show how many of ``total`` rows are done; yields a callback that takes how many more are."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
