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


def cores_by_node(root: Path = Path("/")) -> list[int]:
    """Return one processor of each core, memory node by node; empty when there is one node only.

    Threads that stay on theirs find the weights, which they packed, in their own node's memory.
    """
    nodes = sorted(
        root.glob("sys/devices/system/node/node[0-9]*"), key=lambda node: int(node.name[4:])
    )
    if len(nodes) < 2:
        return []
    allowed = os.sched_getaffinity(0)
    first_of = {min(_numbers(core)): core for core in physical_cores(root)}
    found = [cpu for node in nodes for cpu in _numbers(_read(node / "cpulist"))]
    return [cpu for cpu in found if cpu in first_of and cpu in allowed]


def _numbers(ranges: str) -> list[int]:
    """Return the numbers of a list such as ``0-3,8``."""
    found: list[int] = []
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def time_quota(path: Path) -> float | None:
    """Return the processors' worth of time that a container may use, or None."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
