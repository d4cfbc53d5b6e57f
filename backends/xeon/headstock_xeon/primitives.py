"""How many compiled products PyTorch and oneDNN, which multiply where we do not, may keep."""

from __future__ import annotations

import os

CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Variables that bound oneDNN's cache, and PyTorch's before it."""
NUM_KEPT = 128
"""Products that each keeps, the latest used ones.

There is one for each shape, and a step that is not captured has the shape of its prompts. Of the
1,024 that each keeps by itself, an hour of a small model's mixed load filled 0.8 GB that no plan of
memory knew of. Captured steps use some 70 of them all the time, which so are never the oldest.
"""


def bound_primitives() -> None:
    """Bound the caches of this process, unless the operator has; before the first product."""
    for name in CAPACITIES:
        os.environ.setdefault(name, str(NUM_KEPT))
