"""The garbage collector of a process that serves."""

from __future__ import annotations

import gc


def spare_what_lasts() -> None:
    """Keep what was made so far out of later collections.

    It lives as long as the process, and walking it holds every stream up.
    """
    gc.collect()
    gc.freeze()
