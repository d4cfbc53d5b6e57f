"""What loading and probing a backend does to a fresh interpreter. Run in a subprocess."""

from __future__ import annotations

import sys
import time
from typing import Any


def observe(backend: str) -> dict[str, Any]:
    """Load and probe ``backend``, and say what that imported and how long it took."""
    from headstock.plugins.loader import BACKENDS, State, discover

    known = set(sys.modules)
    begin = time.monotonic()
    plugins = discover(backend=backend, only=[(BACKENDS, backend)])  # others import what they like
    record = next(r for r in plugins.backends if r.name == backend and r.state is State.LOADED)
    first = plugins.probe(record)
    seconds = time.monotonic() - begin
    imported = {name.partition(".")[0] for name in set(sys.modules) - known}
    plugin = plugins.plugin(record)
    own = getattr(plugin, "__name__", type(plugin).__module__).partition(".")[0]
    return {
        "status": first.status.value,
        "reason": first.reason,
        "remedy": first.remedy,
        "num_devices": len(first.devices),
        "seconds": round(seconds, 3),
        "imported": sorted(
            name for name in imported - sys.stdlib_module_names if not name.startswith("_")
        ),
        "own_package": own,
        "is_repeatable": plugins.probe(record) == first,
    }
