"""The garbage collector of a process that serves."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Collect nothing while the block imports, and nothing of that later.

    What is imported stays. Looking through it for garbage takes a fifth of the time that importing
    a tensor library takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def spare_what_lasts() -> None:
    """Keep what was made so far out of later collections.

    It lives as long as the process, and walking it holds every stream up.
    """
    gc.collect()
    gc.freeze()


def look_at_everything() -> None:
    """Let later collections look at all that there is again."""
    gc.unfreeze()
