"""How many threads are worth computing with."""

from __future__ import annotations

import math
import os
from pathlib import Path


def num_compute_threads(root: Path = Path("/")) -> int:
    """Return the physical cores that this process may use: hyperthreads share the vector units.

    A container's share of processor time counts too, rounded up.

    Args:
        root: Where ``sys`` is.
    """
    cores = len(physical_cores(root))
    quota = time_quota(root / "sys/fs/cgroup/cpu.max")
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def physical_cores(root: Path) -> set[str]:
    """Return a name for each core that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return {str(i) for i in range(os.cpu_count() or 1)}
    found: set[str] = set()
    for cpu in os.sched_getaffinity(0):
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            found.add(siblings.read_text().strip())
        except OSError:
            found.add(str(cpu))
    return found


def time_quota(path: Path) -> float | None:
    """Return the processors' worth of time that a container may use, or None."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
